// The address names the chosen runs on every page, and Back goes back a page: Streamlit makes an entry in the browser's
// history for each change of the query too, and of a page that writes its own one two clicks would be needed.
export default function ({ data }) {
  if (!history.entriesArePages) {
    const push = history.pushState.bind(history);
    history.entriesArePages = true;
    history.pushState = (state, title, url) => {
      const isPage = new URL(url, location.href).pathname !== location.pathname;
      isPage ? push(state, title, url) : history.replaceState(state, title, url);
    };
  }
  const names = new URLSearchParams(location.search);
  if (names.has("run") || names.has("runs")) return; // what it names, Streamlit knows and changes
  for (const [name, value] of Object.entries(data.query)) names.set(name, value);
  if (names.size) history.replaceState(history.state, "", `?${names}`);
}
