// SPDX-License-Identifier: Apache-2.0
// Shows what both models expected at a token of the passage. The page reads well without it.
(() => {
  const data = JSON.parse(document.getElementById("token-data").textContent);
  const card = document.getElementById("card");
  let here = null;

  const make = (name, className, text) => {
    const node = document.createElement(name);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const percent = (p) => (p >= 0.0995 ? (100 * p).toFixed(0) : (100 * p).toFixed(1)) + " %";
  const list = (name, packed, actual) => {
    const box = make("div", "candidates"), rows = make("ol");
    box.append(make("h5", "", name), rows);
    for (let at = 0; at < packed.length; at += 2) {
      const row = make("li"), bar = make("span", "bar"), fill = make("i");
      fill.style.width = 100 * packed[at + 1] + "%";
      bar.append(fill);
      row.append(make("span", packed[at] === actual ? "word actual" : "word", data.words[packed[at]]),
                 make("span", "share", percent(packed[at + 1])), bar);
      rows.append(row);
    }
    return box;
  };
  const close = () => {
    card.hidden = true;
    if (here) here.classList.remove("here");
    here = null;
  };
  const show = (token) => {
    if (token === here) return;
    close();
    here = token;
    token.classList.add("here");
    const at = Number(token.dataset.i), file = data.files[Number(token.closest(".passage").dataset.file)];
    const actual = data.tokens[at], pair = make("div", "pair");
    const kld = file.kld[at] === null ? "∞" : Number(file.kld[at].toPrecision(2));
    const head = make("p", "place-kld", "");
    head.append(make("b", "word", data.words[actual]), " follows here; KL " + kld + " nats");
    pair.append(list("original", data.original[at], actual), list(file.name, file.top[at], actual));
    card.replaceChildren(head, pair);
    card.hidden = false;
    if (getComputedStyle(card).position === "fixed") return;
    const box = token.getBoundingClientRect();
    const left = Math.min(Math.max(12, box.left), document.documentElement.clientWidth - card.offsetWidth - 12);
    const below = box.bottom + card.offsetHeight + 10 < window.innerHeight;
    card.style.left = left + window.scrollX + "px";
    card.style.top = (below ? box.bottom + 8 : box.top - card.offsetHeight - 8) + window.scrollY + "px";
  };
  document.addEventListener("pointerover", (event) => {
    if (event.pointerType !== "mouse") return;
    const token = event.target.closest && event.target.closest("[data-i]");
    if (token) show(token); else if (!event.target.closest("#card")) close();
  });
  document.addEventListener("click", (event) => {
    const token = event.target.closest("[data-i]");
    if (token) show(token); else close();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return close();
    const passage = document.activeElement;
    if (!passage || !passage.classList.contains("passage")) return;
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!move) return;
    const tokens = [...passage.querySelectorAll("[data-i]")];
    const next = here && passage.contains(here) ? tokens.indexOf(here) + move : 0;
    if (tokens[next]) { event.preventDefault(); show(tokens[next]); }
  });
})();
