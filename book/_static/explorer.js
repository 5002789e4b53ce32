// The explorer shows one scene at a time. Without this script all of them are on the page.
document.addEventListener("DOMContentLoaded", () => {
  const form = document.querySelector(".explorer form");
  if (!form) return;
  const scenes = [...document.querySelectorAll(".explorer .scene")];
  const names = scenes.map((scene) => scene.id);

  const show = (name) => {
    form.elements.scene.value = name;
    for (const scene of scenes) scene.hidden = scene.id !== name;
  };
  const asked = () => {
    const name = location.hash.slice(1);
    return names.includes(name) ? name : names[0];
  };
  form.hidden = false;
  form.addEventListener("change", () => {
    show(form.elements.scene.value);
    history.replaceState(null, "", `#${form.elements.scene.value}`);
  });
  addEventListener("hashchange", () => show(asked()));
  show(asked());
});
