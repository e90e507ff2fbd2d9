/** A slab for a trace: so many slots, shared out over the sizes of experts as the memory plan does it. */
import { roundUp, SLOT_ALIGN_BYTES } from '../pipeline/memory.ts';
import type { TraceHeader } from '../pipeline/routing-trace.ts';
import type { SlabShape, SlotClass } from '../pipeline/slab.ts';

/** Every size class gets the same share of its experts, and at least top-k slots. */
export function shapeFor(header: TraceHeader, slots: number): SlabShape {
  const { layers, experts, expertsPerToken, expertBytes } = header;
  const slotBytes = expertBytes.map((bytes) => roundUp(bytes, SLOT_ALIGN_BYTES));
  const sizes = [...new Set(slotBytes)].sort((a, b) => a - b);
  const share = Math.min(1, slots / (layers * experts));
  let firstSlot = 0;
  const classes = sizes.map((size): SlotClass => {
    const all = slotBytes.filter((bytes) => bytes === size).length * experts;
    const count = Math.max(expertsPerToken, Math.floor(all * share));
    const made = { slotBytes: size, slots: count, firstSlot };
    firstSlot += count;
    return made;
  });
  return { layers, experts, classes, classOfLayer: slotBytes.map((size) => sizes.indexOf(size)) };
}
