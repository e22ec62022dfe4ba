(function () {
  const rows = Array.from(document.querySelectorAll("#rows tbody tr"));
  const words = document.getElementById("words");
  const marked = document.getElementById("marked");
  const shown = document.getElementById("shown");
  if (!words) return;
  function look() {
    const wanted = words.value.toLowerCase();
    let count = 0;
    for (const row of rows) {
      const found = row.textContent.toLowerCase().includes(wanted);
      row.hidden = !found || (marked.checked && !row.classList.contains("marked"));
      count += row.hidden ? 0 : 1;
    }
    shown.textContent = count + " of " + rows.length + " rows";
  }
  words.addEventListener("input", look);
  marked.addEventListener("change", look);
  look();
})();
