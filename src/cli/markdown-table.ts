/**
 * Markdown tables that also read well as they are. On a terminal that is too narrow, columns are left out, the least
 * needed first: a wrapped table is no table.
 */

export interface Column<Row> {
  readonly head: string;
  readonly cell: (row: Row) => string;
  /** The highest goes first; 0 never goes. */
  readonly expendable: number;
  /** Text stands to the left, numbers to the right. */
  readonly left?: boolean;
}

function widthOf<Row>(column: Column<Row>, rows: readonly Row[]): number {
  return Math.max(column.head.length, 3, ...rows.map((row) => column.cell(row).length));
}

/** The columns that fit. */
function fitting<Row>(
  columns: readonly Column<Row>[],
  rows: readonly Row[],
  terminalColumns: number,
): readonly Column<Row>[] {
  const width = columns.reduce((sum, column) => sum + widthOf(column, rows) + 3, 1);
  const soonest = Math.max(...columns.map(({ expendable }) => expendable));
  if (width <= terminalColumns || soonest === 0) return columns;
  return fitting(
    columns.filter(({ expendable }) => expendable !== soonest),
    rows,
    terminalColumns,
  );
}

/** `terminalColumns` undefined: not a terminal, everything. */
export function markdownTable<Row>(
  all: readonly Column<Row>[],
  rows: readonly Row[],
  terminalColumns = Number.POSITIVE_INFINITY,
): string[] {
  const columns = fitting(all, rows, terminalColumns).map((column) => ({
    ...column,
    width: widthOf(column, rows),
  }));
  const line = (cells: readonly string[]): string => `| ${cells.join(' | ')} |`;
  const place = (text: string, { left, width }: (typeof columns)[number]): string =>
    left === true ? text.padEnd(width) : text.padStart(width);
  const rule = columns.map(({ left, width }) =>
    left === true ? `:${'-'.repeat(width + 1)}` : `${'-'.repeat(width + 1)}:`,
  );
  return [
    line(columns.map((column) => place(column.head, column))),
    `|${rule.join('|')}|`,
    ...rows.map((row) => line(columns.map((column) => place(column.cell(row), column)))),
  ];
}
