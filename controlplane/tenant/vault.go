package tenant

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/sluicegate/sluice/controlplane/store"
	"github.com/sluicegate/sluice/internal/mtls"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

const (
	clusterKeySize  = 32
	fingerprintSize = 16
	sessionKeysName = "session-keys" // name that sealed session keys are bound to
	keyCheck        = "cluster-key"  // in the cluster's space: tells a wrong key from a right one
)

// Vault seals values with the cluster's key, of which each tenant's own are derived. It guards the store's file and
// its copies, not a machine on which both the file and the key can be read.
type Vault struct {
	root []byte

	mu      sync.Mutex // guards tenants
	tenants map[string]*Keys
}

// Keys seal and fingerprint one tenant's values.
type Keys struct {
	tenant   string
	aead     cipher.AEAD
	mac      []byte
	versions []byte
}

// VersionKey keys the versions of the tenant's served secrets, which show in status output.
func (k *Keys) VersionKey() []byte { return k.versions }

// OpenVault reads the key file at path and refuses a key that did not seal what s holds. If generate is true and s is
// new, a missing file is made (0600): the key of a store that is not new cannot be made again.
func OpenVault(ctx context.Context, s store.Store, path string, generate bool) (*Vault, error) {
	sealed, err := s.Get(ctx, store.Cluster, keyCheck)
	begun := err == nil
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	v, err := readVault(path, generate && !begun)
	if err != nil {
		return nil, err
	}
	own := v.Of(store.Cluster)
	if !begun {
		return v, s.Commit(ctx, store.Txn{{Space: store.Cluster, If: store.Unchecked,
			Put: map[string][]byte{keyCheck: own.Seal(keyCheck, []byte(keyCheck))}}})
	}
	if _, err := own.Open(keyCheck, sealed); err != nil {
		return nil, fmt.Errorf("cluster key %s is not the one that sealed this store: put the right one there, or name it with --cluster-key-file", path)
	}
	return v, nil
}

func readVault(path string, generate bool) (*Vault, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) && generate {
		key := [clusterKeySize]byte{}
		rand.Read(key[:]) //nolint:errcheck // never fails
		text := base64.StdEncoding.EncodeToString(key[:]) + "\n"
		if err := mtls.WriteFile(path, []byte(text)); err != nil {
			return nil, err
		}
		info, err = os.Stat(path)
	}
	if err != nil {
		return nil, fmt.Errorf("cluster key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("cluster key %s can be read by others (mode %04o): chmod 600 %s", path, info.Mode().Perm(), path)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("cluster key: %w", err)
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(key) != clusterKeySize {
		return nil, fmt.Errorf("cluster key %s: want %d bytes in base64: make one with `openssl rand -base64 %d`", path, clusterKeySize, clusterKeySize)
	}
	return &Vault{root: key, tenants: map[string]*Keys{}}, nil
}

// Of returns the tenant's keys.
func (v *Vault) Of(tenant string) *Keys {
	v.mu.Lock()
	defer v.mu.Unlock()
	if k := v.tenants[tenant]; k != nil {
		return k
	}
	k := &Keys{tenant: tenant, mac: v.derive("fingerprint", tenant), versions: v.derive("versions", tenant)}
	block, err := aes.NewCipher(v.derive("seal", tenant))
	if err == nil {
		k.aead, err = cipher.NewGCMWithRandomNonce(block)
	}
	if err != nil {
		panic(err) // a key of 32 bytes is always good
	}
	v.tenants[tenant] = k
	return k
}

func (v *Vault) derive(purpose, tenant string) []byte {
	key, err := hkdf.Key(sha256.New, v.root, nil, "sluice "+purpose+"\x00"+tenant, 32)
	if err != nil {
		panic(err) // 32 bytes are always to be had
	}
	return key
}

// Fingerprint names a value without telling it: equal values of one tenant have equal fingerprints, and nobody
// without the key can try values out.
func (k *Keys) Fingerprint(value []byte) string {
	mac := hmac.New(sha256.New, k.mac)
	mac.Write(value)
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil)[:fingerprintSize])
}

// Seal encrypts value. It opens under the same name and tenant alone.
func (k *Keys) Seal(name string, value []byte) []byte {
	return k.aead.Seal(nil, nil, value, []byte(k.tenant+"\x00"+name))
}

// Open decrypts what Seal made under that name.
func (k *Keys) Open(name string, sealed []byte) ([]byte, error) {
	value, err := k.aead.Open(nil, nil, sealed, []byte(k.tenant+"\x00"+name))
	if err != nil {
		return nil, fmt.Errorf("tenant %q: sealed value %s does not open: it was damaged, or sealed with another cluster key", k.tenant, name)
	}
	return value, nil
}

// NewSessionKeys makes a tenant's first session key, in clear and sealed.
func (k *Keys) NewSessionKeys() (*xdsv1.SessionKeys, []byte, error) {
	key := &xdsv1.SessionKey{Id: make([]byte, 4), Key: make([]byte, 32)}
	rand.Read(key.Id)  //nolint:errcheck // never fails
	rand.Read(key.Key) //nolint:errcheck // never fails
	keys := &xdsv1.SessionKeys{Keys: []*xdsv1.SessionKey{key}}
	plain, err := proto.Marshal(keys)
	if err != nil {
		return nil, nil, err
	}
	return keys, k.Seal(sessionKeysName, plain), nil
}

// OpenSessionKeys reads what NewSessionKeys sealed.
func (k *Keys) OpenSessionKeys(sealed []byte) (*xdsv1.SessionKeys, error) {
	plain, err := k.Open(sessionKeysName, sealed)
	if err != nil {
		return nil, err
	}
	keys := &xdsv1.SessionKeys{}
	return keys, proto.Unmarshal(plain, keys)
}
