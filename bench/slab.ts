/**
 * How fast the expert cache's bookkeeping is: lookups of a token's experts with their pins, admissions and evictions.
 *
 * 10,000 slots (a 397B model in 64 GB) for 60 layers of 512 experts, ids drawn with a skew as routers have. The budget is
 * 600 lookups a token. Run: npm run bench:slab
 */
import { NONE, POLICIES, type Policy } from '#dist/pipeline/eviction.js';
import { Slab } from '#dist/pipeline/slab.js';
import { Random } from '#dist/workers/random.js';

const LAYERS = 60;
const EXPERTS = 512;
const SLOTS = 10_000;
const LOOKUPS = 2_000_000;

function measure(policy: Policy): void {
  const slab = new Slab(
    {
      layers: LAYERS,
      experts: EXPERTS,
      classes: [{ slotBytes: 1, slots: SLOTS, firstSlot: 0 }],
      classOfLayer: new Array<number>(LAYERS).fill(0),
    },
    policy,
  );
  const random = new Random(1);
  // The square of a uniform number: a tenth of the experts gets a third of the lookups.
  const wanted = Uint16Array.from({ length: LOOKUPS }, () => Math.floor(random.next() ** 2 * EXPERTS));
  let hits = 0;
  const began = performance.now();
  for (let index = 0; index < LOOKUPS; index++) {
    const layer = Math.floor(index / 10) % LAYERS;
    const expert = wanted[index]!;
    slab.note(layer, expert);
    let slot = slab.find(layer, expert);
    if (slot === NONE) {
      slot = slab.admit(layer, expert);
      slab.pin(slot);
      slab.markReady(slot);
    } else {
      hits++;
      slab.pin(slot);
    }
    slab.unpin(slot);
  }
  const seconds = (performance.now() - began) / 1000;
  const rate = (LOOKUPS / seconds / 1e6).toFixed(2);
  console.log(`${policy.padEnd(6)} ${rate} million lookups/s, ${((100 * hits) / LOOKUPS).toFixed(1)} % hits`);
}

for (const policy of POLICIES) measure(policy);
for (const policy of POLICIES) measure(policy);
