() => {
  // What Gradio leaves out for people who use no mouse or hear the page read. Run once, when the page has loaded.
  // A picture's text is the words that stand beside it: component -> where they are, and what comes before them.
  const WORDS = {
    image: ["The chest X-ray that you chose"], mask: ["The mask, white on black. ", "#finding .says"],
    overlay: ["Mask over the X-ray: ", "#finding .says"], difference: ["Difference map: ", "#verdict .says"],
    attribution: ["Attribution over the X-ray: ", "#explanation .method"],
  };
  const text = selector => selector ? document.querySelector(selector)?.textContent.trim() ?? "" : "";
  const describe = (picture, words) => { if (picture.alt !== words) picture.alt = words; };
  const look = () => {
    for (const [name, [before, selector]] of Object.entries(WORDS))
      document.querySelectorAll(`#${name} img`).forEach(picture => describe(picture, before + text(selector)));
    document.querySelectorAll("#slider img").forEach((picture, k) => describe(picture, `The X-ray with its mask ${k ? "after" : "before"} the edit`));
    document.querySelectorAll("[id^=inside-] img").forEach(picture =>
      describe(picture, picture.closest(".column")?.querySelector(".tile h3, .tile p")?.textContent ?? ""));
    document.querySelectorAll("button:not([aria-label]):not([title])").forEach(button => {
      if (!button.textContent.trim() && button.closest("#image")) button.setAttribute("aria-label", "Choose a chest X-ray");
    });
    announce();
  };
  // Results are announced from one place that is there from the start: a region that comes together with its text is not read out.
  const spoken = document.createElement("div");
  spoken.id = "spoken";
  spoken.setAttribute("role", "status");
  document.body.append(spoken);
  const last = {};
  const announce = () => {
    for (const name of ["finding", "verdict", "explanation"]) {
      const result = document.getElementById(name);
      if (result && !result.getClientRects().length) continue;  // in another tab: once that is opened
      const parts = [...result?.querySelectorAll("h2, .says, .method, strong, :scope > p:only-child") ?? []];
      const words = parts.map(part => part.textContent.trim()).join(" ");
      if (words === (last[name] ?? "")) continue;
      last[name] = words;
      if (words) spoken.textContent = words;
    }
  };
  const changes = {childList: true, subtree: true, characterData: true, attributeFilter: ["aria-selected"]};  // the last: another tab
  new MutationObserver(look).observe(document.body, changes);
  look();
}
