#!/bin/sh
# Makes what compose.yaml's services share: a SoftHSM token, the database's password, and certificates of an authority of its own.
# Runs as root in the image of target `trial`, once; a run that was interrupted begins anew. For development alone.
set -eu
umask 077
keyward=10001 # of the Dockerfile
postgres=999  # of PostgreSQL's image

test ! -e /shared/prepared || exit 0
rm -rf /shared/token /shared/tls /shared/clients /shared/service-key

sh /usr/local/share/keyward/softhsm/init-token.sh /shared/token keyward

install -d -m 755 /shared/tls
install -d -m 755 /shared/clients
cd /shared/tls
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 365 -subj "/CN=Keyward trial" \
    -addext "basicConstraints=critical,CA:TRUE,pathlen:0" -addext "keyUsage=critical,keyCertSign" -keyout ca.key -out ca.pem
certificate() { # certificate FILE USAGE NAME
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -subj "/CN=${1##*/}" -keyout "$1.key" \
        -addext "basicConstraints=critical,CA:FALSE" -addext "keyUsage=critical,digitalSignature" \
        -addext "extendedKeyUsage=$2" -addext "subjectAltName=$3" |
        openssl x509 -req -CA ca.pem -CAkey ca.key -days 365 -copy_extensions copyall -out "$1.pem"
}
certificate keyward serverAuth DNS:localhost
certificate /database/server serverAuth DNS:database
certificate /shared/clients/admin clientAuth URI:spiffe://keyward.test/admin
certificate /shared/clients/issuer clientAuth URI:spiffe://keyward.test/issuer
rm ca.key # nobody needs another certificate
chmod 644 ca.pem keyward.pem
cp ca.pem /shared/clients/ca.pem

od -An -N16 -tx1 /dev/urandom | tr -d ' \n' >/database/password
cp /database/password /shared/database-password

install -d /shared/service-key
chown -R "$keyward:$keyward" /shared/token /shared/tls /shared/clients /shared/service-key /shared/database-password
chmod 755 /shared
chown -R "$postgres:$postgres" /database
touch /shared/prepared
