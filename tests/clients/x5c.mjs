// Verifies JWTs as resource servers do that take the key out of a certificate. Its one argument: the folder whose
// node_modules has jwks-rsa.
//
// One request a line on stdin, one answer a line on stdout, both JSON:
//
//     {"jwks_uri": .., "algorithm": .., "jwt": .., "refetch": true | false}
//     {"jwks-rsa": {"valid": .., "error": ..}, "x5c alone": {"valid": .., "error": ..}}
//
// "jwks-rsa" uses the JWKS as it is served. "x5c alone" sees kty, kid, use, alg and x5c of each key, and nothing else.
// The clients keep the JWKS that they fetched; `refetch` makes them begin anew. `error` is null or "name: message".

import { X509Certificate, createPublicKey, verify } from 'node:crypto'
import { createRequire } from 'node:module'
import { resolve } from 'node:path'
import { createInterface } from 'node:readline'

const jwksClient = createRequire(resolve(process.argv[2], 'package.json'))('jwks-rsa')

const FETCH_TIMEOUT_MILLIS = 10_000

async function fetchJwks(uri) {
  const answer = await fetch(uri, { signal: AbortSignal.timeout(FETCH_TIMEOUT_MILLIS) })
  return answer.json()
}

// jwks-rsa keeps single keys by kid, so what it is given is kept here: a key that it asks for later is of the same set.
function keeping(jwks) {
  let kept
  return async (uri) => (kept ??= await jwks(uri))
}

// jwks-rsa reads no x5c by itself (it wants n and e, or x and y), so its users put this in as the fetcher.
async function jwksFromX5c(uri) {
  const { keys } = await fetchJwks(uri)
  return { keys: keys.map(({ kty, kid, use, alg, x5c }) => fromX5c({ kty, kid, use, alg, x5c })) }
}

function fromX5c({ kty, kid, use, alg, x5c }) {
  const certificate = new X509Certificate(Buffer.from(x5c[0], 'base64'))
  const jwk = certificate.publicKey.export({ format: 'jwk' })
  if (jwk.kty !== kty) {
    throw new Error(`the certificate of ${kid} has a ${jwk.kty} key`)
  }
  if (!certificate.verify(certificate.publicKey)) {
    throw new Error(`the certificate of ${kid} is not signed by its own key`)
  }
  return { ...jwk, kid, use, alg }
}

const sources = { 'jwks-rsa': fetchJwks, 'x5c alone': jwksFromX5c }
const clients = new Map()

async function check(name, request) {
  const id = `${name} ${request.jwks_uri}`
  if (request.refetch || !clients.has(id)) {
    const options = { jwksUri: request.jwks_uri, timeout: FETCH_TIMEOUT_MILLIS, fetcher: keeping(sources[name]) }
    clients.set(id, jwksClient(options))
    // All keys now: one that is asked for later must have been in the set before.
    await clients.get(id).getSigningKeys()
  }
  const [header, claims, signature] = request.jwt.split('.')
  const { kid, alg } = JSON.parse(Buffer.from(header, 'base64url'))
  if (alg !== request.algorithm) {
    throw new Error(`alg is ${alg}`)
  }
  const key = await clients.get(id).getSigningKey(kid)
  const digest = alg === 'EdDSA' ? null : 'sha256'
  const publicKey = { key: createPublicKey(key.getPublicKey()), dsaEncoding: 'ieee-p1363' }
  if (!verify(digest, Buffer.from(`${header}.${claims}`), publicKey, Buffer.from(signature, 'base64url'))) {
    throw new Error('the signature is wrong')
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const verdicts = {}
  for (const name of Object.keys(sources)) {
    try {
      await check(name, JSON.parse(line))
      verdicts[name] = { valid: true, error: null }
    } catch (error) {
      verdicts[name] = { valid: false, error: `${error.name}: ${error.message}` }
    }
  }
  console.log(JSON.stringify(verdicts))
}
