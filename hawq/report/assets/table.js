// Many runs: a scatter with its front, and a table to sort and filter.
"use strict";
const LINES = DATA.lines;
const scatter = byId("scatter");
const KINDS = { // colour, shape and what the legend says
  float: ["var(--soft)", d3.symbolCircle, "float"],
  uniform: ["var(--good)", d3.symbolSquare, "uniform: one bit-width"],
  direct: ["var(--warm)", d3.symbolTriangle, "direct: uniform, ends at 8 bits"],
  mixed: ["var(--accent)", d3.symbolDiamond, "mixed: bits by sensitivity"],
};
const METHODS = { float: "var(--soft)", HAWQ: "var(--accent)", "direct uniform": "var(--warm)" };

// The looks of a line: [group, colour, shape, text of the legend].
function looks(line) {
  if (DATA.by === "kind") return [line.kind, ...KINDS[line.kind]];
  const others = [...new Set(LINES.map((one) => one.method))].filter((method) => !METHODS[method]);
  const color = METHODS[line.method] ?? ["var(--good)", "var(--violet)", "var(--teal)", "var(--bad)"][others.indexOf(line.method) % 4];
  return [line.method, color, KINDS[line.kind][1], line.method];
}

function legend() {
  const groups = new Map(LINES.map((line) => [looks(line)[0], looks(line)]));
  const order = DATA.by === "kind" ? Object.keys(KINDS).filter((kind) => groups.has(kind)) : [...groups.keys()];
  return order.map((group) => {
    const [, color, shape, text] = groups.get(group);
    const mark = d3.create("svg").attr("width", 14).attr("height", 14).attr("viewBox", "-7 -7 14 14").attr("aria-hidden", "true");
    mark.append("path").attr("d", d3.symbol(shape, 75)()).style("fill", color);
    return element("span", { class: "key plain" }, mark.node(), text);
  });
}

// Rising positions moved apart as little as possible, so that neighbours are at least `gap` from each other (least squares).
function apart(positions, gap) {
  const pools = [];
  positions.forEach((position, place) => {
    pools.push({ sum: position - place * gap, count: 1 });
    while (pools.length > 1 && pools.at(-2).sum / pools.at(-2).count > pools.at(-1).sum / pools.at(-1).count) {
      const last = pools.pop();
      pools.at(-1).sum += last.sum;
      pools.at(-1).count += last.count;
    }
  });
  return pools.flatMap((pool) => Array(pool.count).fill(pool.sum / pool.count)).map((position, place) => position + place * gap);
}

// A horizontal axis over values: logarithmic where they differ by much; [type, scale, ticks].
function axis(key, values, left, right, most) {
  let [low, high] = d3.extent(values);
  if (low === high) [low, high] = [low / 1.5, high * 1.5];
  const log = high / low > 3;
  const scale = (log ? d3.scaleLog() : d3.scaleLinear()).domain([low, high]).range([left + 30, right - 30]);
  const ends = [left, right].map(scale.invert), unit = key !== "bytes" ? 1 : high < 2 ** 20 ? 2 ** 10 : 2 ** 20;
  if (!log) return ["linear", scale, d3.ticks(ends[0] / unit, ends[1] / unit, most).map((value) => value * unit)];
  return ["log", scale, key === "bytes" ? ticks(ends, most) : decades(ends, most)];
}

if (scatter) {
  const cost = byId("axis"), merit = byId("merit");
  const up = () => merit?.value ?? (LINES.some((line) => line.accuracy !== null) ? "accuracy" : "predicted");
  const text = { bytes: sizeText, bops: (value) => `${sig(value / 1e9)} G`, w_comp: (value) => `${sig(value)}×` };
  byId("plot-legend").replaceChildren(...legend());

  // One network on its merit against the chosen cost, with its front.
  function drawn(lines, width) {
    const key = cost.value, y = up(), measured = y === "accuracy";
    const cheaper = key === "w_comp" ? -1 : 1, better = measured ? 1 : -1;
    const known = lines.filter((line) => line[key] !== null).sort((a, b) => a[key] - b[key] || a[y] - b[y]);
    if (!known.length) return element("p", { class: "lead" }, "No run knows this figure.");
    const left = 58, right = width - 16;
    const [type, scale, marks] = axis(key, known.map((line) => line[key]), left, right, width < 480 ? 4 : 7);
    const places = apart(known.map((line) => scale(line[key])), 10);
    const points = known.map((line, place) => ({ ...line, x: scale.invert(places[place]) }));
    const front = points.filter((a) => !points.some((b) => b[key] * cheaper <= a[key] * cheaper && b[y] * better >= a[y] * better && (b[key] !== a[key] || b[y] !== a[y])));
    const ends = points.flatMap((line) => (measured ? [line.low ?? line.accuracy, line.high ?? line.accuracy] : [line.predicted]));
    const [low, high] = d3.extent(ends), log = !measured && low > 0 && high / low > 4;
    const pad = measured ? Math.max(0.2, 0.05 * (high - low)) : 0.06 * (high - low || high || 1);
    const color = (line) => looks(line)[1], heights = log ? decades([low / 1.2, high * 1.2], 6) : 6;
    const plot = Plot.plot({
      ...PLOT, width, height: Math.min(440, Math.max(320, width * 0.5)), marginLeft: left, marginRight: 16, marginBottom: 48, marginTop: 28,
      x: { type, domain: [left, right].map(scale.invert), label: `${cost.selectedOptions[0].text}${key === "bytes" ? " (packed file)" : ""}${type === "log" ? ", logarithmic" : ""}` },
      y: {
        type: log ? "log" : "linear", domain: log ? [low / 1.2, high * 1.2] : [low - pad, measured ? Math.min(100 + pad, high + pad) : high + pad],
        label: measured ? "accuracy on test images, %" : `predicted increase of the loss, Σ ${lines[0].score}`, labelArrow: "none", grid: true, ticks: heights, tickFormat: measured ? undefined : sig,
      },
      marks: [
        across(marks, text[key]),
        ...(log ? [upward(heights, sig)] : []),
        Plot.line(front, { x: "x", y, stroke: "var(--soft)", strokeOpacity: 0.7, strokeDasharray: "4 3", curve: cheaper > 0 ? "step-after" : "step-before" }),
        ...(measured ? [Plot.ruleX(points.filter((line) => line.low !== null), { x: "x", y1: "low", y2: "high", stroke: color, strokeOpacity: 0.5, strokeWidth: 3.5 })] : []),
        ...points.map((line) => Plot.dot([line], { x: "x", y, symbol: looks(line)[2], r: 5.5, fill: color(line), stroke: "var(--card)", strokeWidth: 1.5 })),
        Plot.tip(points, Plot.pointer({ x: "x", y, title: (line) => [`${line.method}, ${line.bits} bits`, line.label, measured ? `${line.shown} %` : `predicted ${line.expected}`, `${line.size}${line.seeds > 1 ? `, ${line.seeds} seeds` : ""}`].filter(Boolean).join("\n"), ...TIP })),
      ],
    });
    plot.style.cursor = "pointer";
    plot.addEventListener("click", () => { // what the pointer is near; by keyboard the table has the same links
      const report = plot.value?.reports.find(([, page]) => page)?.[1];
      if (report) location.href = report;
    });
    return plot;
  }

  // One picture for each network; predictions by different scores cannot be compared.
  let redraws = [];
  function build() {
    const y = up(), shown = LINES.filter((line) => line[y] !== null);
    const groups = d3.groups(shown, (line) => (y === "accuracy" ? line.network : `${line.network}, by ${line.score}`));
    scatter.replaceChildren();
    scatter.classList.toggle("three", groups.length > 1);
    redraws = groups.map(([name, lines]) => {
      const place = element("div", { class: "chart" });
      scatter.append(element("figure", {}, ...(groups.length > 1 || DATA.by === "kind" ? [element("h3", {}, name)] : []), place));
      return chart(place, (width) => drawn(lines, width), () => `${y === "accuracy" ? "Accuracy" : "Predicted increase of the loss"} of ${name} against ${cost.selectedOptions[0].text}, ${lines.length} networks`);
    });
  }
  build();
  cost.addEventListener("change", () => redraws.forEach((redraw) => redraw()));
  merit?.addEventListener("change", build);
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
