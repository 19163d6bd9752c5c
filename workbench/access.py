"""Who may see the screen: this machine without a login, others only with one."""

import hmac
import ipaddress
import os
import threading
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import streamlit as st

PASSWORD = "WORKBENCH_PASSWORD"
USERS = "WORKBENCH_USERS"
SHORTEST = 12
COOKIE_SECRET = 32
PAUSE_S = 1.0
"""After a wrong password; tries wait for one another, so all sessions together have one in this time."""
_one_try_at_a_time = threading.Lock()


def guard() -> bool:
    """Whether the person at the screen may see it; if not, the page says why, or asks for a login."""
    auth = sign_in_settings()
    if problem := refusal(st.get_option("server.address"), st.get_option("server.enableXsrfProtection"), auth):
        st.error(problem)
        return False
    if auth:
        return _signed_in(providers(auth))
    return _knows_password() if os.environ.get(PASSWORD) else True


def sign_in_settings() -> dict[str, Any] | None:
    """[auth] of secrets.toml, Streamlit's own login; None where there is none, {} where the file cannot be read.

    https://docs.streamlit.io/develop/concepts/connections/authentication
    """
    if st.secrets.load_if_toml_exists():
        return st.secrets["auth"].to_dict() if "auth" in st.secrets else None
    return {} if any(Path(name).exists() for name in st.get_option("secrets.files")) else None


def refusal(address: str | None, protected: bool, auth: Mapping[str, Any] | None) -> str | None:
    """Why nobody is served at this address with this login, or None."""
    password = os.environ.get(PASSWORD)
    if auth is not None and (problem := _unusable(auth)):
        return f"The login in .streamlit/secrets.toml cannot be used: {problem}, and start the app again."
    if password and len(password) < SHORTEST:
        return f"{PASSWORD} has {len(password)} characters; give it {SHORTEST} at least, and start the app again."
    if is_loopback(address):
        return None
    where = f"The app listens on {address or 'every address'}, which others can reach"
    if not password and auth is None:
        return (
            f"{where}, and no login is set up: start it on 127.0.0.1, or set {PASSWORD} in its environment, or [auth] "
            "in .streamlit/secrets.toml."
        )
    if not protected:
        return (
            f"{where}, and its protection against forged requests is off: leave server.enableXsrfProtection at true, "
            "or start it on 127.0.0.1."
        )
    return None


def _unusable(auth: Mapping[str, Any]) -> str | None:
    """What is wrong with [auth], with the cure."""
    if not providers(auth):
        return "mend the file, which must be TOML, with client_id and what else Streamlit's login needs under [auth]"
    if len(str(auth.get("cookie_secret", ""))) < COOKIE_SECRET:
        return (
            f"give cookie_secret {COOKIE_SECRET} characters at least, since whoever guesses it can sign in as anybody"
        )
    if find_spec("authlib") is None:
        return "install Authlib, with pip install -e '.[login]'"
    return None


def providers(auth: Mapping[str, Any]) -> list[str | None]:
    """The OpenID Connect providers of [auth], by name; None is the one without a name."""
    named = [name for name, part in auth.items() if isinstance(part, Mapping) and "client_id" in part]
    return [*([None] if "client_id" in auth else []), *named]


def is_loopback(address: str | None) -> bool:
    """Whether only this machine reaches an address; no address is every address."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address((address or "").strip("[]")).is_loopback
    except ValueError:
        return False


def may_enter(user: Mapping[str, Any], allowed: str) -> bool:
    """Whether someone a provider knows is among the addresses, or of the @domains, that are allowed."""
    wanted = [part.strip().lower() for part in allowed.split(",") if part.strip()]
    email = str(user.get("email") or "").lower()
    verified = user.get("email_verified") is not False
    return not wanted or (verified and (email in wanted or f"@{email.rpartition('@')[2]}" in wanted))


def _signed_in(names: list[str | None]) -> bool:
    """Whether Streamlit's own login lets the person in."""
    if not st.user.is_logged_in:
        st.title("Sign in")
        for name in names:
            st.button(f"Sign in with {name}" if name else "Sign in", type="primary", on_click=st.login, args=(name,))
        return False
    if not may_enter(st.user.to_dict(), os.environ.get(USERS, "")):
        st.error(f"{st.user.get('email')} may not enter; whoever runs this workbench can add it to {USERS}.")
        st.button("Sign out", on_click=st.logout)
        return False
    st.sidebar.button("Sign out", on_click=st.logout)
    return True


def _knows_password() -> bool:
    """One password for all, kept by the session: a page that is loaded anew asks again."""
    if st.session_state.get("entered"):
        st.sidebar.button("Sign out", on_click=st.session_state.clear)
        return True
    with st.form("password", width=420):
        st.subheader("Sign in")
        given = st.text_input("Password", type="password", autocomplete="current-password")
        asked = st.form_submit_button("Enter", type="primary")
        if asked and matches(given):
            st.session_state["entered"] = True
            st.rerun()
        if asked:
            st.error("That is not the password.")
    return False


def matches(given: str) -> bool:
    """Whether it is the password, compared in constant time; a wrong one is answered after a pause."""
    with _one_try_at_a_time:
        if hmac.compare_digest(given.encode(), os.environ[PASSWORD].encode()):
            return True
        time.sleep(PAUSE_S)
    return False
