// Verifies JWTs with jose, as services that trust an issuer do. Its one argument: the folder whose node_modules has jose.
//
// One request a line on stdin, one answer a line on stdout, both JSON:
//
//     {"jwks_uri": .., "issuer": .., "algorithm": .., "jwt": .., "refetch": true | false}
//     {"jose": {"valid": .., "error": ..}}
//
// The client keeps the JWKS that it fetched; `refetch` makes it fetch again first. `error` is null or "code: message".

import { createRequire } from 'node:module'
import { resolve } from 'node:path'
import { createInterface } from 'node:readline'

const { createRemoteJWKSet, jwtVerify } = createRequire(resolve(process.argv[2], 'package.json'))('jose')

const jwksByUri = new Map()

async function verify(request) {
  if (!jwksByUri.has(request.jwks_uri)) {
    jwksByUri.set(request.jwks_uri, createRemoteJWKSet(new URL(request.jwks_uri)))
  }
  const jwks = jwksByUri.get(request.jwks_uri)
  if (request.refetch) {
    await jwks.reload()
  }
  await jwtVerify(request.jwt, jwks, {
    algorithms: [request.algorithm],
    issuer: request.issuer,
    requiredClaims: ['exp', 'iss'],
  })
}

for await (const line of createInterface({ input: process.stdin })) {
  let verdict = { valid: true, error: null }
  try {
    await verify(JSON.parse(line))
  } catch (error) {
    verdict = { valid: false, error: `${error.code ?? error.name}: ${error.message}` }
  }
  console.log(JSON.stringify({ jose: verdict }))
}
