for (const place of document.querySelectorAll(".chart")) {
  const spec = JSON.parse(document.getElementById("spec-" + place.dataset.figure).textContent);
  vegaEmbed(place, spec, { renderer: "svg", actions: false, ast: true }).then(
    () => { place.dataset.drawn = "yes"; },
    (error) => { place.textContent = String(error); console.error(error); });
}
