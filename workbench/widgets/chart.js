// A Plotly figure that keeps its zoom while data come in.
export default async function (component) {
  const { data, parentElement, setTriggerValue } = component;
  offerNotebook(parentElement.querySelector(".workbench-notebook"), data.notebook, () => setTriggerValue("notebook", 1));
  const element = parentElement.querySelector(".workbench-chart");
  element.style.minHeight = `${data.figure.layout.height ?? 320}px`;
  await draw(element, data.figure, data.name, data.plotly);
}
