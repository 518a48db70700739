/**
 * Opens a session's page and says `live` or `away` whenever its desktop becomes that, until the standard
 * input ends. Not a test by itself: tests that break things run it beside them.
 */

import { once } from 'node:events';
import { openBrowser, signIn, url } from './harness.js';

const browser = await openBrowser();
const { page } = browser;
let loads = 0;
try {
  await signIn(page);
  await page.exposeFunction('tell', (live) => console.log(live ? 'live' : 'away'));
  await page.goto(`${url}/?session=${process.argv[2]}`);
  page.on('load', () => (loads += 1));
  await page.evaluate(() => {
    let before;
    const look = () => {
      const live = document.querySelector('.stage[data-live="true"]') !== null;
      if (live !== before) globalThis.tell(live);
      before = live;
    };
    const everything = { subtree: true, childList: true, attributes: true };
    new MutationObserver(look).observe(document.body, everything);
    look();
  });
  process.stdin.resume();
  await once(process.stdin, 'end');
} finally {
  await browser.close();
}
if (loads > 0 || browser.errors.length > 0) {
  console.error(`loaded again ${loads} times; errors: ${browser.errors.join(', ')}`);
  process.exitCode = 1;
}
