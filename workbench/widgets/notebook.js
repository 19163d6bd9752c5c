// "open in notebook" below a chart: a click asks Python to write it, and what came of that stands beside it.
function offerNotebook(place, said, ask) {
  if (!place.firstChild) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: "open in notebook" });
    place.append(document.createElement("span"), button);
  }
  const [words, button] = place.children;
  button.onclick = ask;
  const news = JSON.stringify(said);
  if (place.news === news) return; // a link that is replaced while it is pressed does not open
  place.news = news;
  words.replaceChildren();
  if (said?.address) {
    const link = { href: said.address, target: "_blank", rel: "noopener", textContent: `${said.file} in JupyterLab` };
    words.append(Object.assign(document.createElement("a"), link));
  } else if (said?.file) {
    const code = (text) => Object.assign(document.createElement("code"), { textContent: text });
    words.append(code(said.file), " is written; ", code("make lab"), " starts JupyterLab, then click again");
  } else if (said) {
    words.append(said.error);
  }
}
