// "open in notebook" by itself.
export default function (component) {
  const { data, parentElement, setTriggerValue } = component;
  offerNotebook(parentElement.querySelector(".workbench-notebook"), data.notebook, () => setTriggerValue("notebook", 1));
}
