/** Values as people read them. Pure: the present is an argument. */

/** A time span in words of one or two units, such as `4 s`, `3 min 20 s`, `2 h 5 min`, `3 days`. */
export function span(ms: number): string {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 60) return `${s} s`;
  const min = Math.floor(s / 60);
  if (min < 10) return s % 60 === 0 ? `${min} min` : `${min} min ${s % 60} s`;
  if (min < 60) return `${min} min`;
  const h = Math.floor(min / 60);
  if (h < 24) return min % 60 === 0 ? `${h} h` : `${h} h ${min % 60} min`;
  const days = Math.floor(h / 24);
  return days === 1 ? '1 day' : `${days} days`;
}

/** A short measured time with one decimal, such as `0.4 s` or `12.3 s`. */
export function seconds(ms: number): string {
  if (ms >= 60_000) return span(ms);
  return `${(Math.max(0, ms) / 1000).toFixed(1)} s`;
}

/** How long ago. */
export function ago(at: string | number, now: number): string {
  const ms = now - (typeof at === 'number' ? at : Date.parse(at));
  return ms < 5_000 ? 'just now' : `${roughly(ms)} ago`;
}

/** A span of one unit, for what need not be exact. */
export function roughly(ms: number): string {
  const s = Math.max(0, Math.floor(ms / 1000));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h`;
  const days = Math.floor(s / 86_400);
  return days === 1 ? '1 day' : `${days} days`;
}

/** Time of day with seconds, in the reader's time zone; with the date when it is another day. */
export function clock(at: string, now: number, locale?: string): string {
  const date = new Date(at);
  const time = date.toLocaleTimeString(locale, {
    hour: '2-digit',
    minute: '2-digit',
    second: '2-digit',
  });
  if (date.toDateString() === new Date(now).toDateString()) return time;
  return `${date.toLocaleDateString(locale, { day: 'numeric', month: 'short' })}, ${time}`;
}

/** Date and time in full. */
export function dateTime(at: string, locale?: string): string {
  return new Date(at).toLocaleString(locale, { dateStyle: 'medium', timeStyle: 'medium' });
}

/** Hours and minutes. */
export function hourMinute(at: string | number, locale?: string): string {
  return new Date(at).toLocaleTimeString(locale, { hour: '2-digit', minute: '2-digit' });
}

/** An amount given in MiB. */
export function mib(amount: number): string {
  if (amount < 1024) return `${amount} MiB`;
  const gib = amount / 1024;
  return `${Number.isInteger(gib) ? gib : gib.toFixed(1)} GiB`;
}

/** An amount given in bytes. */
export function bytes(amount: number): string {
  if (amount < 1024) return `${amount} B`;
  if (amount < 1024 * 1024) return `${(amount / 1024).toFixed(1)} KiB`;
  return `${(amount / 1024 / 1024).toFixed(1)} MiB`;
}

/** What tells one id from another at a glance: its last eight digits, the random ones. */
export function shortId(id: string): string {
  return id.slice(-8);
}

/** A digest short enough to read. */
export function shortDigest(digest: string): string {
  const [kind, hex] = digest.includes(':') ? digest.split(':', 2) : ['', digest];
  return kind ? `${kind}:${(hex ?? '').slice(0, 12)}` : (hex ?? '').slice(0, 12);
}

/** The name of a session for people. */
export function sessionTitle(session: { name: string; id: string }): string {
  return session.name.trim() || `Session ${shortId(session.id)}`;
}
