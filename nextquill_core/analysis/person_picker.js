(() => {
  const by = (id) => document.getElementById(id);
  if (!by('person-users')) return;
  const users = JSON.parse(by('person-users').textContent);
  const settings = JSON.parse(by('person-settings').textContent);
  const blocks = [...document.querySelectorAll('.person-block')];
  const field = by('person-name'), state = by('person-state'), shown = by('person-shown');
  const opened = new Map();
  let at = -1;
  // Texts of users are set as text and never as HTML.
  const make = (tag, text, kind) => {
    const one = document.createElement(tag);
    if (text) one.textContent = text;
    if (kind) one.className = kind;
    return one;
  };
  const told = (text) => { const one = make('div', text, 'told'); one.dir = 'auto'; return one; };
  const open = (index) => {
    if (!opened.has(index)) opened.set(index, (async () => {
      const bytes = Uint8Array.from(atob(blocks[index].textContent), (letter) => letter.charCodeAt(0));
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate'));
      return JSON.parse(await new Response(stream).text());
    })());
    return opened.get(index);
  };
  const token = (text, withHistory, without, weight, preferred) => {
    const p = withHistory / settings.scale, q = without / settings.scale, effect = p - q;
    const one = make('span', text, preferred ? 'preferred' : '');
    const opacity = Math.min(settings.strongest, settings.growth * Math.sqrt(Math.abs(effect)));
    if (opacity >= settings.faintest) {
      one.style.background = 'rgba(' + (effect > 0 ? settings.green : settings.red) + ', ' + opacity.toFixed(2) + ')';
    }
    one.title = 'effect ' + (effect < 0 ? '' : '+') + effect.toFixed(3) + ': ' + p.toFixed(3) + ' with history, '
      + q.toFixed(3) + ' without, weight ' + weight;
    return one;
  };
  const example = (data) => {
    const one = make('article', '', 'example');
    const past = [], columns = data.k;
    if (data.p) {
      past.push(make('details'));
      past[0].append(make('summary', 'Past reviews shown in the prompt (' + data.p.length + ')'));
      for (const [title, text] of data.p) past[0].append(make('h4', title), told(text));
    }
    const review = make('div', '', 'told tokens-of-review');
    review.dir = 'auto';
    review.tabIndex = 0;
    review.setAttribute('role', 'group');
    review.setAttribute('aria-label', 'The true review; arrow keys move from token to token');
    review.append(...columns[0].map((text, i) => token(text, ...columns.slice(1).map((column) => column[i]))));
    const facts = make('p', 'Rest the pointer on a token, or move to it with the arrow keys.', 'token-facts');
    facts.setAttribute('aria-live', 'polite');
    const texts = make('div', '', 'example-texts');
    for (const [method, parts] of data.m) {
      const section = make('section'), text = told('');
      for (const part of parts) text.append(Array.isArray(part) ? make('mark', ...part) : part);
      section.append(make('h4', method), text);
      texts.append(section);
    }
    one.append(make('h3', data.t), make('p', data.f, 'example-facts'), ...past,
      make('h4', 'The true review, coloured by the effect of history'), review, facts, texts);
    tokenKeys(review);
    return one;
  };
  const choose = async (index) => {
    at = index;
    field.value = users[index];
    state.textContent = 'Opening …';
    try {
      const block = await open(Math.floor(index / settings.block));
      if (at !== index) return;
      shown.replaceChildren(...block[index % settings.block].map(example));
      state.textContent = 'User ' + (index + 1) + ' of ' + users.length;
    } catch (error) {
      state.textContent = 'This browser cannot open the list of users; use a newer one.';
    }
  };
  for (const user of users) { const one = make('option'); one.value = user; by('person-names').append(one); }
  const find = () => { const index = users.indexOf(field.value.trim()); if (index >= 0 && index !== at) choose(index); };
  field.addEventListener('input', find);
  field.addEventListener('change', () => {
    find();
    if (!users.includes(field.value.trim())) state.textContent = 'No such user.';
  });
  by('person-before').addEventListener('click', () => choose((at + users.length - 1 + (at < 0)) % users.length));
  by('person-after').addEventListener('click', () => choose((at + 1) % users.length));
  field.closest('p').hidden = false;
  state.textContent = users.length + ' users; type an id, or choose Next.';
})();
