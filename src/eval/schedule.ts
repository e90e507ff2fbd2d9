/**
 * In which order settings are measured, so that a machine that warms up, slows down or forgets favours none of them.
 *
 * Rounds come in pairs, the second the reverse of the first: whatever changes steadily with time weighs on every setting
 * alike after each pair. Over `2 * count` rounds every setting has stood at every place equally often, and behind every
 * other one equally often (a Williams design), so what a run leaves in the caches for the next evens out too.
 */

/** The settings' numbers in the order of each round. */
export function balancedOrder(count: number, rounds: number): number[][] {
  return Array.from({ length: rounds }, (_, round) => {
    const row = zigzag(count).map((place) => (place + (round >> 1)) % count);
    return round % 2 === 0 ? row : row.reverse();
  });
}

/** 0, 1, n-1, 2, n-2, ...: the first row of a Williams square; neighbours differ by every distance once. */
function zigzag(count: number): number[] {
  return Array.from({ length: count }, (_, place) =>
    place % 2 === 1 ? (place + 1) / 2 : (count - place / 2) % count,
  );
}
