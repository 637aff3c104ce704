// Many runs: a scatter with its front, and a table to sort and filter.
"use strict";
const LINES = DATA.lines;
const scatter = byId("scatter");
if (scatter) {
  const select = byId("axis");
  const methods = [...new Set(LINES.map((line) => line.method))];
  const fixed = { float: "var(--soft)", HAWQ: "var(--accent)", "direct uniform": "var(--warm)" };
  const others = methods.filter((method) => !fixed[method]);
  const color = ({ method }) => fixed[method] ?? ["var(--good)", "var(--violet)", "var(--teal)", "var(--bad)"][others.indexOf(method) % 4];
  byId("plot-legend").replaceChildren(...methods.map((method) => element("span", { class: "key dot", style: `--c:${color({ method })}` }, method)));
  const text = { bytes: (value) => bytes(value).replace(".0 ", " ").replace(".00 ", " "), bops: (value) => `${sig(value / 1e9)} G`, w_comp: (value) => `${sig(value)}×` };

  // One network on accuracy against the chosen cost, with its front.
  function drawn(lines, width) {
    const key = select.value, better = key === "w_comp" ? -1 : 1;
    const points = lines.filter((line) => line[key] !== null);
    if (!points.length) return element("p", { class: "lead" }, "No run knows this figure.");
    const front = points
      .filter((a) => !points.some((b) => b[key] * better <= a[key] * better && b.accuracy >= a.accuracy && (b[key] !== a[key] || b.accuracy !== a.accuracy)))
      .sort((a, b) => a[key] - b[key]);
    const [low, high] = d3.extent(points, (line) => line[key]);
    const values = points.flatMap((line) => [line.low ?? line.accuracy, line.high ?? line.accuracy]);
    const pad = Math.max(0.2, 0.05 * (d3.max(values) - d3.min(values)));
    const plot = Plot.plot({
      ...PLOT, width, height: Math.min(440, Math.max(320, width * 0.5)), marginLeft: 54, marginRight: 24, marginBottom: 44, marginTop: 26,
      x: { type: "log", domain: [low / 1.12, high * 1.12], label: select.selectedOptions[0].text, labelAnchor: "center", labelArrow: "none", tickFormat: text[key], ticks: key === "bytes" ? ticks([low, high], width < 480 ? 3 : 6) : decades([low, high], width < 480 ? 4 : 7) },
      y: { domain: [d3.min(values) - pad, Math.min(100 + pad, d3.max(values) + pad)], label: "accuracy %", labelArrow: "none", grid: true, ticks: 6 },
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
  }

  const groups = d3.groups(LINES, (line) => line.network);
  const redraws = groups.map(([network, lines]) => {
    const place = element("div", { class: "chart" });
    scatter.append(element("figure", {}, ...(groups.length > 1 ? [element("h3", {}, network)] : []), place));
    return chart(place, (width) => drawn(lines, width), () => `Accuracy of ${network} against ${select.selectedOptions[0].text}, ${lines.length} networks`);
  });
  if (groups.length === 1) scatter.classList.remove("three");
  for (const redraw of redraws) redraw();
  select.addEventListener("change", () => redraws.forEach((redraw) => redraw()));
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
