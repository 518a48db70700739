/** The address bar holds all that a page needs to come back: the session and what is shown of it. */

export const VIEWS = ['desktop', 'terminal', 'timeline', 'details'] as const;
export type View = (typeof VIEWS)[number];

export interface Route {
  session: string | null;
  view: View;
}

/** Reads a route from the query of an address. */
export function parseRoute(search: string): Route {
  const query = new URLSearchParams(search);
  const session = query.get('session')?.trim() || null;
  const view = VIEWS.find((name) => name === query.get('view')) ?? 'desktop';
  return { session, view };
}

/** The address of a route. */
export function href(route: Partial<Route>): string {
  if (!route.session) return '/';
  const view = route.view && route.view !== 'desktop' ? `&view=${route.view}` : '';
  return `/?session=${encodeURIComponent(route.session)}${view}`;
}

let current = $state.raw<Route>(parseRoute(location.search));
window.addEventListener('popstate', () => (current = parseRoute(location.search)));

export const router = {
  get route(): Route {
    return current;
  },
  /** Goes to another page; the one before stays behind the back button. */
  go(route: Partial<Route>): void {
    history.pushState(null, '', href(route));
    current = parseRoute(location.search);
  },
  /** Shows something else of the same page. */
  show(view: View): void {
    history.replaceState(null, '', href({ ...current, view }));
    current = { ...current, view };
  },
};

/** Follows a link inside the page, unless it is meant for another tab. */
export function follow(event: MouseEvent, route: Partial<Route>): void {
  if (event.defaultPrevented || event.button !== 0) return;
  if (event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  router.go(route);
}
