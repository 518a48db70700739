/** Why a session is over, for people. Pure. */

import type { EndReason, Session } from './types';

const SHORT: Record<EndReason, string> = {
  user_request: 'Ended on request',
  lease_expired: 'Nobody was connected',
  idle: 'Nobody used it',
  max_lifetime: 'Reached its maximum lifetime',
  completed: 'Did what it was made for',
  failed: 'Could not be started or repaired',
};

const LONG: Record<EndReason, string> = {
  user_request: 'It was ended on request, and its machine is deleted.',
  lease_expired:
    'Nobody was connected to it for longer than it waits, so its machine was deleted. Keep the page open in a tab to hold a session.',
  idle: 'Nobody did anything in it for longer than its limit, so its machine was deleted.',
  max_lifetime: 'It reached the longest time that a session may last, so its machine was deleted.',
  completed: 'It did what it was made for, and its machine is deleted.',
  failed: 'Its machine could not be started or repaired. The last events below say why.',
};

/** A few words. */
export function endText(session: Pick<Session, 'endReason' | 'state'>): string {
  if (session.endReason && SHORT[session.endReason]) return SHORT[session.endReason];
  if (session.state === 'failed') return SHORT.failed;
  return session.state === 'ending' ? 'Being taken down' : 'Ended';
}

/** A sentence or two. */
export function endExplanation(session: Pick<Session, 'endReason' | 'state'>): string {
  if (session.state === 'failed') return LONG.failed;
  return (session.endReason && LONG[session.endReason]) || 'Its machine is deleted.';
}
