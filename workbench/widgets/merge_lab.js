// Sliders for alpha, p and seed whose curves follow the drag in the browser; a release is told to Python.
const ELSEWHERE = "These curves are DARE's. How far this rule goes depends on the weights one by one: " +
  "its report says it once the merge is written.";
const COLOURS = { base: "#0072B2", sft: "#D55E00" };

function figureOf(pair, merge, found) {
  const layers = pair.change.map((_, n) => n);
  const traces = [];
  for (const [kind, name] of [["base", "from the base"], ["sft", "from sft"]]) {
    const mean = found[kind].mean.slice(0, layers.length);
    const spread = found[kind].spread;
    const colour = COLOURS[kind];
    const low = mean.map((value, n) => Math.max(0, value - 2 * spread[n]));
    const high = mean.map((value, n) => value + 2 * spread[n]);
    traces.push(
      { x: layers, y: low, mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false },
      { x: layers, y: high, mode: "lines", line: { width: 0 }, fill: "tonexty", fillcolor: `${colour}33`,
        hoverinfo: "skip", showlegend: false },
      { x: layers, y: mean, mode: "lines+markers", name: `merge ${name}`, line: { color: colour, width: 2, dash: kind === "sft" ? "dash" : "solid" },
        customdata: found.alphas.map((alpha, n) => [2 * spread[n], alpha]),
        hovertemplate: `layer %{x}, ${name}: <b>%{y:.4g}</b> ± %{customdata[0]:.2g} over seeds` +
          ", alpha %{customdata[1]:.2f}<extra></extra>" },
    );
  }
  traces.push({ x: layers, y: pair.change, mode: "lines", name: "sft from start",
    line: { color: "#8a8f98", width: 1.5, dash: "dot" }, hovertemplate: "layer %{x}: %{y:.4g}<extra></extra>" });
  const top = 1.08 * Math.max(...pair.change, ...found.base.mean.slice(0, layers.length), pair.ceiling);
  return {
    data: traces,
    layout: {
      height: 320, margin: { l: 10, r: 10, t: 10, b: 10 }, hovermode: "closest", uirevision: "keep",
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", legend: { orientation: "h", y: 1.12, x: 0 },
      xaxis: { title: { text: "layer" }, showgrid: false, zeroline: false, automargin: true, dtick: layers.length > 16 ? undefined : 1 },
      yaxis: { title: { text: "distance (sum of Frobenius norms)" }, range: [0, top], zeroline: false, automargin: true,
        gridcolor: "rgba(128,128,128,0.2)" },
    },
  };
}

function totals(found) {
  const number = (value) => value.toPrecision(4);
  const outside = found.base.mean.at(-1);
  return `whole model: <b>${number(found.base.total)}</b> from the base, <b>${number(found.sft.total)}</b> from sft` +
    ` · embeddings, norms and head: ${number(outside)} from the base`;
}

export default async function (component) {
  const { data, parentElement, setStateValue, setTriggerValue } = component;
  offerNotebook(parentElement.querySelector(".workbench-notebook"), data.notebook, () => setTriggerValue("notebook", 1));
  const root = parentElement.querySelector(".merge-lab");
  const find = (name) => root.querySelector(`[name=${name}]`);
  if (!root.merge || root.pair !== data.pair_id) {
    root.merge = structuredClone(data.merge);
    root.pair = data.pair_id;
  }
  const merge = root.merge;
  const points = root.querySelector(".points");

  function show() {
    for (const name of ["alpha", "drop_rate", "seed", "rule", "profile", "towards"]) find(name).value = merge[name];
    root.querySelector("output[for=alpha]").textContent = Number(merge.alpha).toFixed(2);
    root.querySelector("output[for=drop_rate]").textContent = Number(merge.drop_rate).toFixed(2);
    find("profile").querySelector("[value=importance]").disabled = !data.pair.importance;
    points.hidden = merge.profile !== "points";
    find("drop_rate").disabled = merge.rule === "slerp";
  }

  let asked = false;
  function follow() {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      const found = curves(data.pair, merge);
      root.querySelector(".totals").innerHTML = merge.rule === "dare" ? totals(found) : ELSEWHERE;
      draw(root.querySelector(".workbench-chart"), figureOf(data.pair, merge, found), "merge-distance", data.plotly);
    });
  }

  function read() {
    merge.alpha = Number(find("alpha").value);
    merge.drop_rate = Number(find("drop_rate").value);
    merge.seed = Math.max(0, Math.round(Number(find("seed").value) || 0));
    merge.rule = find("rule").value;
    merge.profile = find("profile").value;
    merge.towards = find("towards").value;
    merge.points = [...points.querySelectorAll("input")].map((input) => Number(input.value));
    show();
    follow();
  }

  if (!points.children.length) {
    merge.points.forEach((value, n) => {
      const label = n === 0 ? "first layer" : n === merge.points.length - 1 ? "last layer" : "";
      const input = document.createElement("input");
      Object.assign(input, { type: "range", min: 0, max: 1, step: 0.05, value });
      input.setAttribute("aria-label", `alpha at point ${n + 1} ${label}`);
      points.append(input);
    });
  }
  root.oninput = read;
  root.onchange = () => {
    read();
    setStateValue("merge", {
      ...merge,
      drop_rate: merge.rule === "slerp" ? 0 : merge.drop_rate,
      points: merge.profile === "points" ? merge.points : [],
    });
  };
  show();
  await loadPlotly(data.plotly);
  follow();
}
