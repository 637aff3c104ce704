// Many runs: a scatter with its front, and a table to sort and filter.
"use strict";
const LINES = DATA.lines;
const place = document.querySelector('[data-chart="scatter"]');
if (place) {
  const select = byId("axis");
  const methods = [...new Set(LINES.map((line) => line.method))];
  const own = [...new Set(LINES.filter((line) => !line.reference).map((line) => line.method))];
  const color = ({ method }) => (method === "float" ? "var(--soft)" : own.includes(method) ? ["var(--accent)", "var(--good)"][own.indexOf(method) % 2] : "var(--warm)");
  byId("plot-legend").replaceChildren(...methods.map((method) => element("span", { class: "key dot", style: `--c:${color({ method })}` }, method)));
  const text = { bytes: (value) => bytes(value).replace(".0 ", " ").replace(".00 ", " "), bops: (value) => `${sig(value / 1e9)} G`, w_comp: (value) => `${sig(value)}×` };
  const redraw = chart(place, (width) => {
    const key = select.value, better = key === "w_comp" ? -1 : 1;
    const points = LINES.filter((line) => line[key] !== null);
    if (!points.length) return element("p", { class: "lead" }, "No run knows this figure.");
    const front = points
      .filter((a) => !points.some((b) => b[key] * better <= a[key] * better && b.accuracy >= a.accuracy && (b[key] !== a[key] || b.accuracy !== a.accuracy)))
      .sort((a, b) => a[key] - b[key]);
    const [low, high] = d3.extent(points, (line) => line[key]);
    const values = points.flatMap((line) => [line.low ?? line.accuracy, line.high ?? line.accuracy]);
    const plot = Plot.plot({
      ...PLOT, width, height: Math.min(460, Math.max(320, width * 0.5)), marginLeft: 54, marginRight: 24, marginBottom: 44, marginTop: 26,
      x: { type: "log", domain: [low / 1.08, high * 1.08], label: select.selectedOptions[0].text, labelAnchor: "center", labelArrow: "none", tickFormat: text[key], ticks: key === "bytes" ? ticks([low, high], width < 480 ? 3 : 6) : decades([low, high], width < 480 ? 4 : 7) },
      y: { domain: [d3.min(values) - 0.3, Math.min(100.3, d3.max(values) + 0.3)], label: "accuracy %", labelArrow: "none", grid: true, ticks: 6 },
      marks: [
        Plot.line(front, { x: key, y: "accuracy", stroke: "var(--soft)", strokeDasharray: "4 3", curve: better > 0 ? "step-after" : "step-before" }),
        Plot.ruleX(points.filter((line) => line.low !== null), { x: key, y1: "low", y2: "high", stroke: color, strokeOpacity: 0.45, strokeWidth: 3 }),
        Plot.dot(points, { x: key, y: "accuracy", r: 6, fill: color, stroke: "var(--card)", strokeWidth: 1.5 }),
        Plot.tip(points, Plot.pointer({ x: key, y: "accuracy", title: (line) => `${line.method} ${line.label}\n${line.shown} %\n${line.size}${line.seeds > 1 ? `, ${line.seeds} seeds` : ""}`, ...TIP })),
      ],
    });
    plot.style.cursor = "pointer";
    plot.addEventListener("click", () => { // what the pointer is near; by keyboard the table has the same links
      const report = plot.value?.reports.find(([, page]) => page)?.[1];
      if (report) location.href = report;
    });
    return plot;
  }, () => `Accuracy against ${select.selectedOptions[0].text} of ${LINES.length} networks`);
  select.addEventListener("change", redraw);
}

const body = document.querySelector("#lines tbody");
if (body) {
  const rows = [...body.rows];
  const show = () => {
    const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of rows) {
      const line = LINES[row.dataset.place];
      const content = `${row.textContent} ${line.command}`.toLowerCase();
      const fits = words.every((word) => content.includes(word));
      row.classList.toggle("hidden", !fits);
      count += fits;
    }
    byId("shown").textContent = `${count} of ${rows.length}`;
  };
  byId("filter").addEventListener("input", show);
  show();
  for (const header of document.querySelectorAll("#lines th[data-key]")) {
    header.querySelector("button").addEventListener("click", () => {
      const down = header.getAttribute("aria-sort") === "ascending";
      for (const other of document.querySelectorAll("#lines th[data-key]")) other.setAttribute("aria-sort", "none");
      header.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = header.dataset.key, sign = down ? -1 : 1;
      const value = (row) => LINES[row.dataset.place][key];
      rows.sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === null || y === null) return (x === null) - (y === null);
        return sign * (typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y);
      });
      body.append(...rows);
    });
  }
}
document.body.dataset.ready = "yes";
