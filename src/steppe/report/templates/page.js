"use strict";
(() => {
  const data = JSON.parse(document.getElementById("steppe-data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
  const PATTERNS = ["", "/", "x", "."];
  const CONFIG = { displayModeBar: false, responsive: false, doubleClick: "reset" };
  let printing = false;

  // Plotly reads a little HTML in its texts; names are data and must stay text.
  const text = (value) => String(value).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const percent = (fraction) => (100 * fraction).toFixed(1);
  const spread = (value) => percent(value.mean) + (value.error === null ? "" : ` ± ${percent(value.error)}`);
  const from = (runs) => `<br>${runs.length === 1 ? "run" : "runs"} ${runs.map(text).join(", ")}`;
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const ink = (method) => (dark.matches && !printing ? method.ink.dark : method.ink.light);

  // On paper a chart has the width of an upright page, whatever the window's.
  const fit = (element) => { element.style.width = printing ? "17cm" : ""; };

  function layout(element, extra) {
    const colours = { paper: style("--paper"), ink: style("--ink"), grid: style("--grid"), muted: style("--muted") };
    return {
      width: element.clientWidth, height: element.clientHeight,
      paper_bgcolor: colours.paper, plot_bgcolor: colours.paper, showlegend: false,
      font: { family: style("--sans"), size: 12, color: colours.ink },
      hoverlabel: { bgcolor: colours.paper, bordercolor: colours.muted, font: { color: colours.ink, family: style("--sans") }, align: "left" },
      margin: { l: 44, r: 8, t: 12, b: 28 }, hovermode: "closest", dragmode: false, ...extra(colours),
    };
  }

  // The bars stand at places of our own, so that a diamond is exactly over the bar it belongs to.
  function bars(comparison) {
    const groups = comparison.held_out.map((domain) => ({
      title: domain,
      of: (method) => method.cells[domain] || null,
    }));
    if (comparison.held_out.length > 1 && comparison.methods.some((method) => method.average)) {
      groups.push({
        title: "average",
        of: (method) => method.average && { held_out: method.average, in_domain: method.average_in_domain },
      });
    }
    const slot = 0.82 / comparison.methods.length;
    const traces = [];
    comparison.methods.forEach((method, number) => {
      const places = [], cells = [];
      groups.forEach((group, position) => {
        const cell = group.of(method);
        if (cell) {
          places.push(position - 0.41 + (number + 0.5) * slot);
          cells.push({ title: group.title, ...cell });
        }
      });
      const colour = ink(method);
      const hover = (cell, kind) => `<b>${text(method.name)}</b> · ${text(cell.title)}<br>${kind} ${spread(cell[kind === "in-domain" ? "in_domain" : "held_out"])} %${from(cell.held_out.runs)}`;
      traces.push({
        type: "bar", name: method.name, x: places, y: cells.map((cell) => 100 * cell.held_out.mean), width: slot * 0.86,
        marker: { color: colour, pattern: { shape: PATTERNS[method.ink.turn % 4], bgcolor: colour, fgcolor: style("--paper"), size: 5 } },
        error_y: { type: "data", array: cells.map((cell) => 100 * (cell.held_out.error || 0)), visible: cells.some((cell) => cell.held_out.error !== null), color: style("--ink"), thickness: 1.4, width: 4 },
        text: cells.map((cell) => percent(cell.held_out.mean)), textposition: "inside", insidetextanchor: "start", textangle: 0,
        textfont: { color: dark.matches && !printing ? "#15181b" : "#ffffff", size: 11 }, constraintext: "none",
        hovertext: cells.map((cell) => hover(cell, "held-out")), hoverinfo: "text",
      });
      // On paper of its own, so that a diamond is seen on the bar of its own colour too.
      traces.push({
        type: "scatter", mode: "markers", name: `${method.name}, in-domain`, x: places, y: cells.map((cell) => 100 * cell.in_domain.mean),
        marker: { symbol: "diamond", size: 10, color: style("--paper"), line: { color: colour, width: 1.6 } },
        hovertext: cells.map((cell) => hover(cell, "in-domain")), hoverinfo: "text", cliponaxis: false,
      });
    });
    return { traces, groups };
  }

  function drawBars(section, comparison) {
    const element = section.querySelector(".chart-bars");
    const { traces, groups } = bars(comparison);
    // A bar needs some 13 pixels to be told apart; a chart of many scrolls in its own box.
    const least = 60 + groups.length * (comparison.methods.length * 13 + 16);
    fit(element);
    element.style.minWidth = printing ? "" : `${least}px`;
    const room = (element.clientWidth - 52) / (groups.length * (comparison.methods.length + 0.6));
    traces.filter((trace) => trace.type === "bar").forEach((trace) => {
      if (trace.marker.pattern.shape) { trace.textposition = "none"; } // figures on stripes cannot be read
      trace.textangle = room < 36 ? -90 : 0;
      if (room < 15) { trace.textposition = "none"; }
    });
    const highest = Math.max(...traces.flatMap((trace) => trace.y.map((value, at) => value + (trace.error_y ? trace.error_y.array[at] : 0))));
    const top = Math.min(100, 20 * Math.ceil((highest + 2) / 20));
    Plotly.react(element, traces, layout(element, (colours) => ({
      xaxis: { tickvals: groups.map((_, place) => place), ticktext: groups.map((group) => text(group.title)), range: [-0.5, groups.length - 0.5], fixedrange: true, showgrid: false, zeroline: false, linecolor: colours.ink, showline: true },
      yaxis: { range: [0, top], ticksuffix: " %", fixedrange: true, gridcolor: colours.grid, zeroline: false, dtick: 20 },
    })), CONFIG);
  }

  function panelsOf(comparison, choice) {
    const curves = comparison.curves.filter((curve) => curve.held_out === choice.held_out);
    const methods = comparison.methods.filter((method) => curves.some((curve) => curve.method === method.name));
    const domains = comparison.domains.filter((domain) => curves.some((curve) => curve.domain === domain));
    const line = (method, domain, dash) => ({ method, domain, dash, curve: curves.find((curve) => curve.method === method.name && curve.domain === domain) });
    if (choice.panels === "method") {
      return {
        panels: methods.map((method) => ({ title: method.name, lines: domains.map((domain, place) => line(method, domain, DASHES[place % 6])) })),
        legend: domains.map((domain, place) => ({ title: domain, dash: DASHES[place % 6], light: style("--ink"), dark: style("--ink") })),
      };
    }
    return {
      panels: domains.map((domain) => ({ title: domain, lines: methods.map((method) => line(method, domain, DASHES[method.ink.turn % 6])) })),
      legend: methods.map((method) => ({ title: method.name, dash: DASHES[method.ink.turn % 6], light: method.ink.light, dark: method.ink.dark })),
    };
  }

  function drawLegend(element, entries) {
    const css = { solid: "solid", dash: "dashed", longdash: "dashed", dot: "dotted", dashdot: "dashed", longdashdot: "dashed" };
    element.replaceChildren(...entries.map((entry) => {
      const item = document.createElement("li"), swatch = document.createElement("span");
      swatch.className = "swatch line";
      swatch.style.setProperty("--light", entry.light);
      swatch.style.setProperty("--dark", entry.dark);
      swatch.style.setProperty("--dash", css[entry.dash]);
      item.append(swatch, entry.title);
      return item;
    }));
  }

  function drawCurves(section, comparison) {
    const element = section.querySelector(".chart-curves");
    if (!element) { return; }
    fit(element);
    const form = section.querySelector(".controls");
    const choice = Object.fromEntries(new FormData(form));
    const { panels, legend } = panelsOf(comparison, choice);
    const columns = Math.max(1, Math.min(panels.length, Math.floor(element.clientWidth / 250)));
    const rows = Math.ceil(panels.length / columns);
    element.style.height = `${Math.max(1, rows) * 235 + 30}px`;
    const gap = { x: 34 / element.clientWidth, y: 52 / (rows * 235) };
    const size = { x: (1 - gap.x * (columns - 1)) / columns, y: (1 - gap.y * (rows - 1)) / rows };
    const axes = {}, titles = [], traces = [];
    panels.forEach((panel, place) => {
      const id = place ? String(place + 1) : "", column = place % columns, row = Math.floor(place / columns);
      const left = column * (size.x + gap.x), top = 1 - row * (size.y + gap.y);
      axes[`xaxis${id}`] = { anchor: `y${id}`, domain: [left, left + size.x], ...(place ? { matches: "x" } : {}), last: row === rows - 1 || place + columns >= panels.length };
      axes[`yaxis${id}`] = { anchor: `x${id}`, domain: [top - size.y, top], ...(place ? { matches: "y" } : {}), first: column === 0 };
      titles.push({ text: `<b>${text(panel.title)}</b>`, x: left, y: top, xref: "paper", yref: "paper", xanchor: "left", yanchor: "bottom", showarrow: false, font: { size: 13 } });
      panel.lines.filter((line) => line.curve).forEach(({ method, domain, dash, curve }) => {
        traces.push({
          type: "scatter", mode: "lines", name: `${method.name} · ${domain}`, x: curve.steps, y: curve[choice.form], xaxis: `x${id}`, yaxis: `y${id}`,
          line: { color: ink(method), dash, width: 1.8 }, hoverinfo: "text",
          hovertext: curve.steps.map((step, at) => `<b>${text(method.name)}</b> · ${text(domain)}<br>step ${step}, loss ${curve.loss[at].toFixed(3)}${from(curve.runs)}`),
        });
      });
    });
    Plotly.react(element, traces, layout(element, (colours) => {
      for (const [name, axis] of Object.entries(axes)) {
        const { last, first, ...rest } = axis;
        axes[name] = { ...rest, fixedrange: true, gridcolor: colours.grid, zeroline: false, nticks: 5, linecolor: colours.muted, showline: true, rangemode: "tozero", showticklabels: last ?? first };
        if (last) { axes[name].title = { text: "step", standoff: 4, font: { size: 11, color: colours.muted } }; }
      }
      return { ...axes, annotations: titles, margin: { l: 34, r: 16, t: 24, b: 40 } };
    }), CONFIG);
    drawLegend(section.querySelector(".curve-legend"), legend);
  }

  const sections = [...document.querySelectorAll("[data-comparison]")];
  const draw = () => sections.forEach((section) => {
    const comparison = data.comparisons[Number(section.dataset.comparison)];
    drawBars(section, comparison);
    drawCurves(section, comparison);
  });

  sections.forEach((section) => {
    const form = section.querySelector(".controls");
    if (form) { form.addEventListener("change", () => drawCurves(section, data.comparisons[Number(section.dataset.comparison)])); }
  });

  // A number leads to its runs: their rows are marked in the table of runs.
  document.addEventListener("click", (event) => {
    const number = event.target.closest("a.n[data-run]");
    if (!number) { return; }
    const ids = new Set(number.dataset.run.split(" "));
    document.querySelector("details.runs").open = true;
    const rows = [...document.querySelectorAll(".run-table tbody tr")];
    rows.forEach((row) => row.classList.toggle("picked", ids.has(row.dataset.id)));
    const first = rows.find((row) => ids.has(row.dataset.id));
    if (first) { event.preventDefault(); first.scrollIntoView({ block: "center" }); }
  });

  let width = 0, waiting = 0;
  const redraw = () => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(draw); };
  addEventListener("resize", () => { if (document.body.clientWidth !== width) { width = document.body.clientWidth; redraw(); } });
  dark.addEventListener("change", redraw);
  addEventListener("beforeprint", () => { printing = true; document.querySelector("details.runs").open = true; draw(); });
  addEventListener("afterprint", () => { printing = false; draw(); });
  width = document.body.clientWidth;
  draw();
  document.documentElement.dataset.ready = "yes";
})();
