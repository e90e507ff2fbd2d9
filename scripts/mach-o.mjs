/**
 * What a Mach-O file says about itself: enough to see that an add-on built on Linux is one that macOS can load.
 *
 * Layouts from Apple's loader.h and nlist.h. Only 64-bit little-endian files; everything else is told apart and refused.
 */
const MAGIC_64 = 0xfeedfacf;
const ARCHITECTURES = new Map([
  [0x0100000c, 'arm64'],
  [0x01000007, 'x86_64'],
]);
const KINDS = new Map([
  [2, 'a program'],
  [6, 'library'],
  [8, 'bundle'],
]);
const LC_SYMTAB = 0x2;
const LC_LOAD_DYLIB = 0xc;
const LC_CODE_SIGNATURE = 0x1d;
const NLIST_BYTES = 16;
const N_STAB = 0xe0;
const N_TYPE = 0x0e;
const N_EXT = 0x01;
const N_UNDEFINED = 0;
/** Library ordinals that name no library: found wherever it is when the file is loaded. */
const DYNAMIC_LOOKUP = 0xfe;

function text(bytes, from) {
  return bytes.toString('latin1', from, bytes.indexOf(0, from));
}

function* loadCommands(bytes) {
  let at = 32;
  for (let left = bytes.readUInt32LE(16); left > 0; left--) {
    const size = bytes.readUInt32LE(at + 4);
    yield { kind: bytes.readUInt32LE(at), at };
    at += size;
  }
}

function* symbols(bytes, table) {
  const [offset, count, strings] = [0, 4, 8].map((each) => bytes.readUInt32LE(table + 8 + each));
  for (let index = 0; index < count; index++) {
    const at = offset + index * NLIST_BYTES;
    const type = bytes[at + 4];
    // Debugging entries and local names are nobody else's business.
    if ((type & N_STAB) !== 0 || (type & N_EXT) === 0) continue;
    const ordinal = bytes.readUInt16LE(at + 6) >> 8;
    yield {
      name: text(bytes, strings + bytes.readUInt32LE(at)),
      defined: (type & N_TYPE) !== N_UNDEFINED,
      ordinal,
    };
  }
}

export function readMachO(bytes) {
  if (bytes.length < 32 || bytes.readUInt32LE(0) !== MAGIC_64) throw new Error('no 64-bit Mach-O file');
  const found = {
    arch: ARCHITECTURES.get(bytes.readUInt32LE(4)) ?? 'another processor',
    kind: KINDS.get(bytes.readUInt32LE(12)) ?? 'another kind of file',
    signed: false,
    libraries: [],
    defined: [],
    undefinedSymbols: [],
  };
  let table = -1;
  for (const { kind, at } of loadCommands(bytes)) {
    if (kind === LC_CODE_SIGNATURE) found.signed = true;
    if (kind === LC_SYMTAB) table = at;
    if (kind === LC_LOAD_DYLIB) found.libraries.push(text(bytes, at + bytes.readUInt32LE(at + 8)));
  }
  if (table < 0) throw new Error('no symbol table');
  for (const { name, defined, ordinal } of symbols(bytes, table)) {
    if (defined) found.defined.push(name);
    else {
      const library = ordinal === DYNAMIC_LOOKUP ? 'none' : (found.libraries[ordinal - 1] ?? 'none');
      found.undefinedSymbols.push({ name, library });
    }
  }
  return found;
}
