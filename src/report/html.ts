/**
 * Text into HTML, without ever becoming markup.
 *
 * What a report shows comes from model files, file names and command lines of others. All of it goes through `escapeHtml`
 * (for text and quoted attributes) or `embedJson` (for data that the page's script reads); nothing else writes values into
 * a page. The page's content security policy names the hashes of its own scripts, so that markup which slipped through
 * would still not run.
 */
const ENTITIES: Readonly<Record<string, string>> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  '"': '&quot;',
  "'": '&#39;',
};

/** Control characters that HTML forbids or terminals act on; tab and line feed stay. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: those are what it is about
const CONTROLS = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g;

export function escapeHtml(text: string): string {
  return text
    .toWellFormed()
    .replace(CONTROLS, '\ufffd')
    .replace(/[&<>"']/g, (each) => ENTITIES[each]!);
}

/** JSON that holds neither an end tag nor a comment, for a `<script type="application/json">`. */
export function embedJson(value: unknown): string {
  return JSON.stringify(value, (_, each) => (typeof each === 'string' ? each.toWellFormed() : each))
    .replace(CONTROLS, '\ufffd')
    .replace(/[<>&]/g, (each) => `\\u${each.charCodeAt(0).toString(16).padStart(4, '0')}`);
}
