'use strict';
function tokenKeys(box) {
  const tokens = [...box.querySelectorAll('span')];
  const facts = box.nextElementSibling;
  const hint = facts.textContent;
  const show = (token) => { facts.textContent = token.textContent.trim() + '\n' + token.title; };
  let at = -1;
  for (const token of tokens) {
    token.tabIndex = -1;
    token.addEventListener('focus', () => { at = tokens.indexOf(token); show(token); });
    token.addEventListener('mouseenter', () => show(token));
  }
  box.addEventListener('mouseleave', () => { if (!box.contains(document.activeElement)) facts.textContent = hint; });
  box.addEventListener('keydown', (event) => {
    const steps = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tokens.length - 1 };
    if (!(event.key in steps) || !tokens.length) return;
    event.preventDefault();
    tokens[Math.min(tokens.length - 1, Math.max(0, steps[event.key]))].focus();
  });
}
document.querySelectorAll('.tokens-of-review').forEach(tokenKeys);
