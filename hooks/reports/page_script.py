"""The script of a report's page: values under the pointer. Without it the page stays readable."""

import base64
import hashlib

SCRIPT = """
const tip = document.createElement("div");
tip.id = "tip";
tip.hidden = true;
document.body.append(tip);
for (const svg of document.querySelectorAll("svg[role=img]")) {
  const curves = [...svg.querySelectorAll("path[data-points]")].map(path => ({
    name: path.dataset.name,
    hue: path.getAttribute("class"),
    points: path.dataset.points.split(";").filter(Boolean).map(point => point.split(" ")),
  }));
  const mark = svg.appendChild(document.createElementNS(svg.namespaceURI, "line"));
  mark.setAttribute("class", "mark");
  const hide = () => { tip.hidden = true; mark.style.display = "none"; };
  const show = event => {
    const box = svg.getBoundingClientRect(), view = svg.viewBox.baseVal;
    const x = (event.clientX - box.left) * view.width / box.width;
    const distance = point => Math.abs(point[1] - x);
    const nearest = curves.flatMap(curve => curve.points)
      .reduce((best, point) => !best || distance(point) < distance(best) ? point : best, null);
    if (!nearest) return;
    const rows = [document.createElement("div")];
    rows[0].textContent = `epoch ${nearest[0]}`;
    for (const { name, hue, points } of curves) {
      const point = points.find(point => point[0] === nearest[0]);
      if (!point) continue;
      const row = document.createElement("div"), key = document.createElement("i");
      key.className = hue;
      row.append(key, `${name} ${point[3]}`);
      rows.push(row);
    }
    tip.replaceChildren(...rows);
    for (const [name, value] of [["x1", nearest[1]], ["x2", nearest[1]], ["y1", 10],
                                 ["y2", view.height - 26]]) mark.setAttribute(name, value);
    mark.style.display = "";
    tip.hidden = false;
    const left = event.clientX + 14, right = document.documentElement.clientWidth;
    tip.style.left = `${Math.max(0, Math.min(left, right - tip.offsetWidth - 4)) + scrollX}px`;
    tip.style.top = `${event.clientY + 14 + scrollY}px`;
  };
  hide();
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", hide);
  for (const title of svg.querySelectorAll("circle title")) title.remove();
}
"""

DIGEST = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
"""By which the page's policy allows this script and no other."""
