// The ledger's filter: by verdict and by words. Without this script the whole table shows.
document.addEventListener("DOMContentLoaded", () => {
  const table = document.querySelector(".ledger table");
  if (!table) return;
  const rows = [...table.tBodies[0].rows].map((row) => ({
    row,
    verdict: row.querySelector(".verdict").classList[1],
    text: row.textContent.toLowerCase(),
  }));

  const form = document.createElement("form");
  form.className = "filter";
  form.addEventListener("submit", (event) => event.preventDefault());
  const words = form.appendChild(document.createElement("input"));
  Object.assign(words, { type: "search", placeholder: "Words, chapter, claim …" });
  words.setAttribute("aria-label", "Show claims that contain these words");
  const marks = document.querySelectorAll("article .verdict"); // the sentence of counts comes first
  for (const verdict of new Set([...marks].map((mark) => mark.classList[1]))) {
    const count = rows.filter((entry) => entry.verdict === verdict).length;
    const label = form.appendChild(document.createElement("label"));
    const box = label.appendChild(document.createElement("input"));
    Object.assign(box, { type: "checkbox", value: verdict, checked: true });
    label.append(` ${verdict.replaceAll("-", " ")} (${count})`);
  }
  const said = form.appendChild(document.createElement("output"));
  table.closest(".ledger").before(form);

  const filter = () => {
    const asked = words.value.toLowerCase().split(/\s+/);
    const wanted = [...form.querySelectorAll(":checked")].map((box) => box.value);
    for (const { row, verdict, text } of rows) {
      row.hidden = !wanted.includes(verdict) || !asked.every((word) => text.includes(word));
    }
    said.value = `${rows.filter(({ row }) => !row.hidden).length} of ${rows.length} claims`;
  };
  form.addEventListener("input", filter);
  filter();
});
