// The constructs of Metal's language that C++ cannot spell: attributes, kernels, their instantiations, threadgroup
// variables and function constants. Everything else is left to the compiler and the shim.
//
// `flavour` decides how each comes out: emulated (C++ on the host), strict (C++ for OpenCL, to check address spaces) or
// cuda (device code for PTX).

const BUILTINS = {
  thread_position_in_grid: 'kThreadPositionInGrid',
  threadgroup_position_in_grid: 'kThreadgroupPositionInGrid',
  thread_position_in_threadgroup: 'kThreadPositionInThreadgroup',
  threads_per_threadgroup: 'kThreadsPerThreadgroup',
  threadgroups_per_grid: 'kThreadgroupsPerGrid',
  thread_index_in_threadgroup: 'kThreadIndexInThreadgroup',
  thread_index_in_simdgroup: 'kThreadIndexInSimdgroup',
  simdgroup_index_in_threadgroup: 'kSimdgroupIndexInThreadgroup',
  simdgroups_per_threadgroup: 'kSimdgroupsPerThreadgroup',
};

function parseAttribute(text, place) {
  const match = /^\s*([\w:]+)\s*(?:\(([\s\S]*)\))?\s*$/.exec(text);
  if (!match) throw new Error(`${place}: [[${text}]] is not an attribute`);
  return { name: match[1], argument: (match[2] ?? '').trim() };
}

export class Rewriter {
  constructor(tokens, flavour) {
    this.tokens = tokens;
    this.flavour = flavour;
    this.kernels = new Map(); // function name -> parameters
    this.entries = []; // {host, expression, base, maxThreads, place}
    this.threadgroupVariables = 0;
    this.attributes = new Map(); // index of [[ -> {list, end}
  }

  run() {
    this.#takeAttributes();
    this.#takeKernels();
    this.#takeAddressSpaces();
    for (const entry of this.entries) {
      if (!this.kernels.has(entry.base))
        throw new Error(`${entry.place}: no kernel ${entry.base} to instantiate`);
    }
  }

  #takeAttributes() {
    const { tokens } = this;
    for (let at = 0; at < tokens.length; at = tokens.next(at)) {
      if (tokens.text(at) !== '[[') continue;
      let end = at;
      let depth = 0;
      do {
        end = tokens.next(end);
        if (tokens.text(end) === '(') depth += 1;
        if (tokens.text(end) === ')') depth -= 1;
      } while (!(tokens.text(end) === ']]' && depth === 0));
      const list = tokens
        .join(at + 1, end - 1)
        .split(/,(?![^(]*\))/)
        .map((text) => parseAttribute(text, tokens.place(at)));
      this.attributes.set(at, { list, end });
      tokens.erase(at, end);
    }
  }

  #attributesIn(first, last) {
    const found = [];
    for (let at = first; at <= last; at += 1) found.push(...(this.attributes.get(at)?.list ?? []));
    return found;
  }

  #takeKernels() {
    const { tokens } = this;
    for (let at = 0; at < tokens.length; at = tokens.next(at)) {
      if (!(tokens.isWord(at) && tokens.text(at) === 'kernel')) continue;
      let start = tokens.previous(at);
      while (start >= 0 && ![';', '}', '{', '>', 'template'].includes(tokens.text(start)))
        start = tokens.previous(start);
      const attributes = this.#attributesIn(Math.max(start, 0), at);
      const find = (name) => attributes.find((each) => each.name === name)?.argument;
      const common = {
        host: find('host_name')?.replaceAll('"', ''),
        maxThreads: Number(find('max_total_threads_per_threadgroup') ?? 1024),
        place: tokens.place(at),
      };
      if (tokens.text(start) === 'template') this.#takeInstantiation(start, at, common);
      else this.#takeDefinition(at, tokens.text(start) === '>', common);
    }
  }

  // template [[host_name("name")]] kernel type function<arguments>;
  #takeInstantiation(start, at, common) {
    const { tokens } = this;
    const end = tokens.find(at, ';');
    const close = tokens.previous(end);
    if (tokens.text(close) !== '>')
      throw new Error(`${common.place}: an instantiation names its template arguments`);
    let open = close;
    for (let depth = 0; ; open = tokens.previous(open)) {
      if (tokens.text(open) === '>') depth += 1;
      if (tokens.text(open) === '<') depth -= 1;
      if (depth === 0) break;
    }
    const base = tokens.previous(open);
    if (!common.host) throw new Error(`${common.place}: an instantiation has a host_name`);
    this.entries.push({ ...common, expression: tokens.join(base, close), base: tokens.text(base) });
    tokens.erase(start, end);
  }

  #takeDefinition(at, isTemplate, common) {
    const { tokens } = this;
    const open = tokens.find(at, '(');
    const name = tokens.text(tokens.previous(open));
    this.kernels.set(name, this.#parameters(name, open));
    const isStatic = !isTemplate && this.flavour !== 'strict';
    tokens.replace(at, isStatic ? 'static' : '');
    if (!isTemplate)
      this.entries.push({ ...common, host: common.host ?? name, expression: name, base: name });
  }

  #parameters(name, open) {
    const { tokens } = this;
    const close = tokens.closing(open);
    const parameters = [];
    const seen = new Set();
    let first = tokens.next(open);
    let depth = 0;
    for (let at = first; at <= close; at = tokens.next(at)) {
      const text = tokens.text(at);
      if ('([{<'.includes(text)) depth += 1;
      if (')]}>'.includes(text) && at !== close) depth -= 1;
      if (!(at === close || (text === ',' && depth === 0))) continue;
      // An attribute stands behind its parameter's last token, so its place may be after that.
      const parameter = this.#parameter(name, first, at);
      if (parameter.index !== undefined) {
        const key = `${parameter.kind} ${parameter.index}`;
        if (seen.has(key)) throw new Error(`${tokens.place(first)}: kernel ${name} uses ${key} twice`);
        seen.add(key);
      }
      parameters.push(parameter);
      first = tokens.next(at);
    }
    return parameters;
  }

  #parameter(name, first, last) {
    for (const attribute of this.#attributesIn(first, last)) {
      if (attribute.name === 'buffer') return { kind: 'kBuffer', index: Number(attribute.argument) };
      if (attribute.name === 'threadgroup')
        return { kind: 'kThreadgroupMemory', index: Number(attribute.argument) };
      if (BUILTINS[attribute.name]) return { kind: BUILTINS[attribute.name] };
    }
    const text = this.tokens.join(first, last - 1);
    throw new Error(`${this.tokens.place(first)}: parameter '${text}' of kernel ${name} has no attribute`);
  }

  #takeAddressSpaces() {
    const { tokens } = this;
    for (let at = 0; at < tokens.length; at = tokens.next(at)) {
      if (!tokens.isWord(at)) continue;
      if (tokens.text(at) === 'constant') this.#takeConstant(at);
      else if (tokens.text(at) === 'threadgroup') this.#takeThreadgroup(at);
    }
  }

  // constant type name [[function_constant(index)]];
  #takeConstant(at) {
    const { tokens } = this;
    const end = tokens.find(at, ';', '{', '}', '(', ')', '=');
    const attribute = this.#attributesIn(at, end).find((each) => each.name === 'function_constant');
    if (!attribute) return;
    const nameAt = tokens.previous(end);
    const type = tokens.join(tokens.next(at), tokens.previous(nameAt));
    const name = tokens.text(nameAt);
    tokens.erase(at, tokens.previous(end));
    const code = {
      emulated:
        `static ${type} ${name}; ` +
        `static const moestream::emu::ConstantSlot slot_of_${name}{${attribute.argument}, &${name}, sizeof(${name})}`,
      strict: `__constant ${type} ${name} = 1`,
      cuda: `extern "C" __attribute__((constant)) ${type} ${name} = 0`,
    };
    tokens.replace(at, code[this.flavour]);
  }

  // `threadgroup` before a pointer, a reference or a cast says an address space; before a name it makes a variable.
  #takeThreadgroup(at) {
    const { tokens } = this;
    const word = this.flavour === 'strict' ? '__local' : '';
    const typeFirst = tokens.next(at);
    let next = typeFirst;
    while (['const', 'volatile', 'typename'].includes(tokens.text(next))) next = tokens.next(next);
    if (!tokens.isWord(next)) return tokens.replace(at, word);
    for (;;) {
      next = tokens.next(next);
      if (tokens.text(next) === '<') next = tokens.next(tokens.closing(next));
      if (tokens.text(next) !== '::') break;
      next = tokens.next(next);
    }
    if (!tokens.isWord(next)) return tokens.replace(at, word);
    this.#takeThreadgroupVariable(at, tokens.join(typeFirst, tokens.previous(next)), next);
  }

  #takeThreadgroupVariable(at, type, nameAt) {
    const { tokens } = this;
    const end = tokens.find(nameAt, ';');
    if (this.flavour === 'cuda') return tokens.replace(at, 'static __attribute__((shared))');
    const name = tokens.text(nameAt);
    const rest = tokens.join(tokens.next(nameAt), tokens.previous(end));
    if (rest !== '' && !/^(\[[^\]]*\])+$/.test(rest)) {
      throw new Error(`${tokens.place(at)}: a threadgroup variable stands alone and has no initializer`);
    }
    tokens.erase(at, end);
    const id = this.threadgroupVariables;
    this.threadgroupVariables += 1;
    const code =
      this.flavour === 'strict'
        ? `typedef ${type} ${name}_memory${rest}; __local ${name}_memory& ${name} = *(__local ${name}_memory*)0;`
        : `auto& ${name} = *moestream::emu::threadgroup_variable<${type}${rest}>(${id});`;
    tokens.replace(at, code);
  }
}
