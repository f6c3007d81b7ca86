// A layer is chosen by click or arrow key; its line appears at once, its map when the server has drawn it.
element.addEventListener("change", (event) => {
  const output = element.querySelector("output");
  if (event.target.name !== "icam-layer") return;
  output.textContent = event.target.ariaLabel;
  trigger("layer", { index: Number(event.target.value) });
});
