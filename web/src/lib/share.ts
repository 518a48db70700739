/**
 * A share link: `/?session=ID&share=SECRET` shows one desktop to somebody without an access token,
 * who can use it too when `&control=1` is added and the link was made for that. The secret is taken out of the address at once, so that it gets into no history, screenshot or
 * Referer, and is kept for this tab alone.
 */

const KEY = 'holdfast.share';

export interface Shared {
  session: string;
  secret: string;
  /** Keys and mouse are not sent. The server refuses them of such a link in any case. */
  viewOnly: boolean;
}

/** What this tab was opened to show; `null` for the dashboard itself. */
export function takeShared(): Shared | null {
  const query = new URLSearchParams(location.search);
  const session = query.get('session');
  const secret = query.get('share');
  if (session && secret) {
    const shared = { session, secret, viewOnly: query.get('control') !== '1' };
    sessionStorage.setItem(KEY, JSON.stringify(shared));
    history.replaceState(null, '', `/?session=${encodeURIComponent(session)}`);
    return shared;
  }
  const kept = sessionStorage.getItem(KEY);
  if (kept === null) return null;
  const shared = JSON.parse(kept) as Shared;
  return shared.session === session ? shared : null;
}

/** Where the desktop of a link is. */
export function sharedDesktop({ session, secret }: Shared): string {
  const scheme = location.protocol === 'https:' ? 'wss' : 'ws';
  const path = `/api/sessions/${encodeURIComponent(session)}/desktop`;
  return `${scheme}://${location.host}${path}?share=${encodeURIComponent(secret)}`;
}
