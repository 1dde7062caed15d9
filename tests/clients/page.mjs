// Looks at pages in a headless Chromium, as a person's browser does, and tells what is there. Its one argument: the folder
// whose node_modules has puppeteer-core.
//
// One request a line on stdin, one answer a line on stdout, both JSON:
//
//     {"url": .., "scheme": "light" | "dark", "width": .., "screenshot": PATH | null, "domains": {HOST: ADDRESS}}
//     {"status": .., "text": .., "keyrings": [..], "complaints": [..], "requests": [..], ..} or {"error": ..}
//
// Scripts of the page are off. `domains` takes the place of DNS, and holds for the first request's browser and all after it.

import { createRequire } from 'node:module'
import { resolve } from 'node:path'
import { createInterface } from 'node:readline'

const puppeteer = createRequire(resolve(process.argv[2], 'package.json'))('puppeteer-core')

/** A start or a page that takes longer hangs. */
const WAIT_MAX_MS = 45_000
/** How much of a phone's page a picture shows, from the top. */
const PHONE_PICTURE_PX = 1240

/** What can be told from inside the page; it runs there. */
function inspect() {
  const all = (root, selector) => [...root.querySelectorAll(selector)]
  // Spaces that hold a line together are spaces.
  const shown = (element) => element.innerText.replaceAll('\u00a0', ' ')
  const text = (root, selector) => root.querySelector(selector)?.textContent.trim() ?? null
  const keyrings = all(document, 'section').map((section) => ({
    algorithm: section.getAttribute('aria-labelledby'),
    text: shown(section),
    keys: all(section, '.timeline > li').map((key) => ({
      state: text(key, 'h3'),
      top: key.getBoundingClientRect().top,
      codes: all(key, 'code').map((code) => code.textContent),
      times: all(key, 'time').map((time) => [time.dateTime, time.innerText.replace(/\s+/g, ' ')]),
      milestones: all(key, '.life > li').map((step) => [text(step, '.name'), step.className === 'reached']),
      links: all(key, 'a').map((link) => [link.textContent, link.href]),
    })),
  }))

  // WCAG 2.2, relative luminance and contrast ratio; colours are opaque here, and text stands on the nearest background.
  const channels = (colour) => colour.match(/[\d.]+/g).map(Number)
  const luminance = (colour) => {
    const [r, g, b] = channels(colour).map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4))
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
  }
  const backgroundOf = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor
      const [, , , alpha = 1] = channels(colour)
      if (alpha === 1) return colour
      if (alpha !== 0) throw new Error(`a background that lets another through: ${colour}`)
    }
    throw new Error('text without a background')
  }
  const own = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())
  const contrasts = all(document.body, '*').filter(own).map((element) => {
    const shades = [getComputedStyle(element).color, backgroundOf(element)].map(luminance).sort((a, b) => b - a)
    return { ratio: (shades[0] + 0.05) / (shades[1] + 0.05), text: element.textContent.trim().slice(0, 40) }
  })
  const size = (element) => {
    const { width, height } = element.getBoundingClientRect()
    return { text: element.textContent, width, height, href: element.getAttribute('href') }
  }
  return {
    title: document.title,
    lang: document.documentElement.lang,
    text: shown(document.body),
    headings: all(document, 'h1, h2, h3').map((heading) => [Number(heading.tagName[1]), heading.textContent.trim()]),
    keyrings,
    links: all(document, 'a').map(size),
    elements: [...new Set(all(document, '*').map((element) => element.localName))],
    contrast: contrasts.sort((a, b) => a.ratio - b.ratio)[0],
    background: getComputedStyle(document.body).backgroundColor,
    selects: all(document, 'section code').map((code) => getComputedStyle(code).userSelect),
    keys_bottom: document.querySelector('footer')?.getBoundingClientRect().top,
    scroll_width: document.documentElement.scrollWidth,
    inner_width: innerWidth,
  }
}

let browser

async function look({ url, scheme, width, screenshot, domains }) {
  // Chromium has no sandbox for root, whom tests in a container run as; elsewhere it keeps it.
  const root = process.getuid() === 0 ? ['--no-sandbox'] : []
  const rules = Object.entries(domains).map(([host, address]) => `MAP ${host} ${address}`)
  browser ??= await puppeteer.launch({
    executablePath: '/usr/bin/chromium',
    args: [...root, `--host-resolver-rules=${rules.join(', ')}`, '--disable-background-networking'],
    pipe: true, // it leaves when this script does, however that ends
    timeout: WAIT_MAX_MS,
    protocolTimeout: WAIT_MAX_MS,
  })
  const context = await browser.createBrowserContext()
  try {
    const page = await context.newPage()
    page.setDefaultTimeout(WAIT_MAX_MS)
    await page.setJavaScriptEnabled(false)
    await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: scheme }])
    const phone = width < 600
    await page.setViewport({ width, height: 800, isMobile: phone, hasTouch: phone, deviceScaleFactor: phone ? 1.5 : 1 })

    // What a developer would see in the console: refusals of the policy are there too.
    const complaints = []
    const requests = []
    const session = await page.createCDPSession()
    session.on('Log.entryAdded', ({ entry }) => complaints.push(`${entry.level}: ${entry.text}`))
    session.on('Audits.issueAdded', ({ issue }) => complaints.push(`issue: ${issue.code} ${JSON.stringify(issue.details)}`))
    await session.send('Log.enable')
    await session.send('Audits.enable')
    page.on('console', (message) => complaints.push(`console: ${message.text()}`))
    page.on('pageerror', (error) => complaints.push(`error: ${error.message}`))
    page.on('request', (request) => requests.push(request.url()))

    const answer = await page.goto(url, { waitUntil: 'networkidle0' })
    const seen = await page.evaluate(inspect)
    // What one tap on the first key's name copies.
    const kid = await page.$('.timeline code')
    if (kid) {
      await kid.click()
      seen.selected = await page.evaluate(() => getSelection().toString())
      await page.evaluate(() => getSelection().removeAllRanges())
    }
    if (screenshot) {
      await page.mouse.move(0, 0)
      // The keys are what a picture is for; a phone's page is long, and its first screens tell enough.
      const height = phone ? PHONE_PICTURE_PX : seen.keys_bottom
      await page.screenshot({ path: screenshot, captureBeyondViewport: true, clip: { x: 0, y: 0, width, height } })
    }
    return { status: answer.status(), url: page.url(), ...seen, complaints, requests }
  } finally {
    await context.close()
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  let answer
  try {
    answer = await look(JSON.parse(line))
  } catch (error) {
    answer = { error: `${error.name}: ${error.message}` }
  }
  console.log(JSON.stringify(answer))
}
await browser?.close()
