// plotly.js from the plotly package on this machine, loaded once per page; nothing comes from outside, nothing goes there.
let loading;

function loadPlotly(url) {
  if (window.Plotly) return Promise.resolve(window.Plotly);
  loading ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = url;
    script.onload = () => {
      window.Plotly.setPlotConfig(AT_HOME);
      resolve(window.Plotly);
    };
    script.onerror = () => reject(new Error(`could not load ${url}`));
    document.head.append(script);
  });
  return loading;
}

// The figure's layout in the page's colours and font.
function inTheme(layout, element) {
  const style = getComputedStyle(element);
  const colour = style.getPropertyValue("--st-text-color") || style.color;
  const background = style.getPropertyValue("--st-background-color") || "#fff";
  const font = { color: colour, family: style.getPropertyValue("--st-font") || style.fontFamily, size: 13 };
  const hoverlabel = { bgcolor: background, bordercolor: colour, font: { ...font } };
  return { ...layout, font: { ...font, ...layout.font }, hoverlabel, autosize: true };
}

function download(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// One file that shows the chart anywhere, without a network: the library goes in.
async function asHtml(plot, url) {
  const library = await (await fetch(url)).text();
  const figure = JSON.stringify({ data: plot.data, layout: { ...plot.layout, width: undefined } });
  const safe = figure.replaceAll("<", "\\u003c");
  return `<!doctype html><meta charset="utf-8"><div id="chart"></div><script>${library}</script>
<script>const f = ${safe};
Plotly.newPlot("chart", f.data, f.layout, ${JSON.stringify({ ...AT_HOME, responsive: true })});</script>`;
}

function plotConfig(name, url) {
  const button = (title, icon, click) => ({ name: title, title, icon, click });
  const icons = window.Plotly.Icons;
  return {
    ...AT_HOME,
    responsive: true,
    modeBarButtonsToRemove: ["lasso2d", "select2d", "toImage"],
    modeBarButtonsToAdd: [
      button("Download as PNG", icons.camera, (plot) =>
        window.Plotly.downloadImage(plot, { format: "png", scale: 3, filename: name })),
      button("Download as SVG", icons.pencil, (plot) =>
        window.Plotly.downloadImage(plot, { format: "svg", filename: name })),
      button("Download as HTML", icons.disk, async (plot) =>
        download(`${name}.html`, new Blob([await asHtml(plot, url)], { type: "text/html" }))),
    ],
  };
}

// Draw into an element, or change what is drawn there; a zoom stays while `uirevision` does.
async function draw(element, figure, name, url) {
  await loadPlotly(url);
  if (!element.plotConfig) {
    element.plotConfig = plotConfig(name, url); // another object would count as a change and begin anew
    // A chart drawn in a hidden tab has no width until it is shown.
    new ResizeObserver(() => element.offsetWidth && window.Plotly.Plots.resize(element)).observe(element);
  }
  return window.Plotly.react(element, figure.data, inTheme(figure.layout, element), element.plotConfig);
}
