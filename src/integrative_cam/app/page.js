// The stage: a photograph is chosen, dropped or pasted, and goes to the server as text, never to a file there.
const send = async (file) => {
  if (!file) return;
  if (file.size > LIMIT) {
    element.querySelector(".icam-hint, .icam-note")?.remove();
    const note = document.createElement("p");
    note.className = "icam-note";
    note.role = "alert";
    note.textContent = `This file has ${Math.round(file.size / 2 ** 20)} MB; photographs up to ${LIMIT / 2 ** 20} MB are taken.`;
    element.querySelector(".icam-choose").after(note);
    return;
  }
  const reader = new FileReader();
  reader.onload = () => trigger("photograph", { name: file.name, data: reader.result.split(",", 2)[1] ?? "" });
  reader.readAsDataURL(file);
};
element.addEventListener("change", (event) => {
  if (event.target.type === "file") {
    send(event.target.files[0]);
    event.target.value = "";
  }
});
element.addEventListener("click", (event) => {
  if (event.target.closest("[data-example]")) trigger("example", {});
});
for (const kind of ["dragenter", "dragover"])
  element.addEventListener(kind, (event) => {
    event.preventDefault();
    element.classList.add("icam-over");
  });
for (const kind of ["dragleave", "drop"])
  element.addEventListener(kind, () => element.classList.remove("icam-over"));
element.addEventListener("drop", (event) => {
  event.preventDefault();
  send(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => {
  const image = [...event.clipboardData.files].find((file) => file.type.startsWith("image/"));
  if (image) send(image);
});
