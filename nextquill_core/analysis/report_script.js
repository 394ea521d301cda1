// Sorts the tables of a report: every heading becomes a button, for the pointer and for the keyboard.
'use strict';
const number = (cell) => {
  if (cell.dataset.value) return parseFloat(cell.dataset.value);
  const found = /^[+\u2212-]?[\d,]*\.?\d+/.exec(cell.textContent.trim());
  return found ? parseFloat(found[0].replace(/,/g, '').replace('\u2212', '-')) : null;
};
const empty = (cell) => cell.textContent.trim() === '\u2013';
const compare = (one, other, side) => {
  if (empty(one) || empty(other)) return empty(one) - empty(other); // what was not measured comes last
  const [first, second] = [number(one), number(other)];
  if (first !== null && second !== null) return side * (first - second);
  return side * one.textContent.trim().localeCompare(other.textContent.trim());
};
for (const table of document.querySelectorAll('table.sortable')) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement('button');
    button.type = 'button';
    button.className = 'sort';
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener('click', () => {
      const down = heading.getAttribute('aria-sort') !== 'descending';
      for (const other of headings) other.removeAttribute('aria-sort');
      heading.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      const body = table.tBodies[0];
      const rows = [...body.rows];
      rows.sort((one, other) => compare(one.cells[column], other.cells[column], down ? -1 : 1));
      body.append(...rows);
    });
  });
}
// A closed part of the page opens when a link leads into it.
const opened = () => {
  const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
  for (let one = target; one; one = one.parentElement) if (one.tagName === 'DETAILS') one.open = true;
};
window.addEventListener('hashchange', opened);
opened();
