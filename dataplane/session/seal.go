package session

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"sync/atomic"
)

// ErrInvalid is the one answer to an id that does not open, whatever the reason.
var ErrInvalid = errors.New("session: invalid id")

// Key seals and opens. The control plane makes, rotates and withdraws keys.
type Key struct {
	ID     [4]byte
	Secret [32]byte
}

// Scope is whom an id is good for. It is authenticated with every id and stored in none.
type Scope struct {
	Tenant  string
	Backend string
	// Principal is policy.Principal.ID; "" is the anonymous caller.
	Principal string
}

// AnyBearer is the Principal in the scope of sessions that go on with another token if their target takes it: [State.Caller] says
// who began one. No principal has it as its ID.
const AnyBearer = "bearer"

const (
	format    = 1 // first byte of every id; another layout of what follows is another format
	keyIDSize = 4
	nonceSize = 24
	tagSize   = 16
	overhead  = 1 + keyIDSize + nonceSize + tagSize
)

// kind keeps ids of one purpose from being accepted for another.
type kind byte

const (
	kindSession kind = 'S'
	kindCursor  kind = 'C'
	kindRequest kind = 'R'
	kindEvent   kind = 'E'
	kindStream  kind = 'L'
	kindCall    kind = 'P'
	kindTask    kind = 'T'
)

// strict refuses a second spelling of the same bytes: trailing bits must be zero, and newlines are no part of an id.
var strict = base64.RawURLEncoding.Strict()

// Codec seals and opens one tenant's ids. It is immutable and safe for concurrent use.
type Codec struct {
	serial uint64 // tells it from all others of this process
	seals  xaes
	sealID [keyIDSize]byte
	opens  map[[keyIDSize]byte]xaes // keys that seal no more open as long as their ids live
}

var serials atomic.Uint64

// New returns a codec. The first key seals, all open; there must be one.
func New(keys []Key) (*Codec, error) {
	if len(keys) == 0 {
		return nil, errors.New("session: no session key")
	}
	c := &Codec{serial: serials.Add(1), sealID: keys[0].ID, opens: make(map[[keyIDSize]byte]xaes, len(keys))}
	for _, k := range keys {
		if _, twice := c.opens[k.ID]; twice {
			return nil, fmt.Errorf("session: two keys with the id %x", k.ID)
		}
		x, err := newXAES(k.Secret)
		if err != nil {
			return nil, err
		}
		c.opens[k.ID] = x
	}
	c.seals = c.opens[c.sealID]
	return c, nil
}

func (c *Codec) seal(k kind, s Scope, plain []byte) string {
	var nonce [nonceSize]byte
	_, _ = rand.Read(nonce[:]) // crypto/rand.Read never returns an error
	return c.sealWith(nonce, k, s, plain)
}

// sealSame seals the same to the same: the nonce is a keyed hash of what is sealed.
func (c *Codec) sealSame(k kind, s Scope, plain []byte) string {
	var ad [256]byte
	h := hmac.New(sha256.New, c.seals.same[:])
	h.Write(appendString(additional(ad[:0], k, s), string(plain)))
	return c.sealWith([nonceSize]byte(h.Sum(nil)), k, s, plain)
}

func (c *Codec) sealWith(nonce [nonceSize]byte, k kind, s Scope, plain []byte) string {
	var stack [512]byte
	out := append(stack[:0], format)
	out = append(out, c.sealID[:]...)
	out = append(out, nonce[:]...)
	var ad [256]byte
	out = c.seals.derive(nonce).Seal(out, nonce[nonceSize-12:], plain, additional(ad[:0], k, s))
	return strict.EncodeToString(out)
}

// open returns what was sealed. The result aliases nothing.
func (c *Codec) open(k kind, s Scope, id string) ([]byte, error) {
	if len(id) > maxEncoded {
		return nil, ErrInvalid
	}
	for i := range len(id) {
		if id[i] == '\r' || id[i] == '\n' { // which encoding/base64 skips, strict or not
			return nil, ErrInvalid
		}
	}
	var stack [512]byte
	sealed, err := strict.AppendDecode(stack[:0], []byte(id))
	if err != nil || len(sealed) < overhead || sealed[0] != format {
		return nil, ErrInvalid
	}
	key, ok := c.opens[[keyIDSize]byte(sealed[1:])]
	if !ok {
		return nil, ErrInvalid
	}
	nonce := [nonceSize]byte(sealed[1+keyIDSize:])
	var ad [256]byte
	plain, err := key.derive(nonce).Open(nil, nonce[nonceSize-12:], sealed[1+keyIDSize+nonceSize:], additional(ad[:0], k, s))
	if err != nil {
		return nil, ErrInvalid
	}
	return plain, nil
}

// additional is what an id is bound to. Lengths stand before the parts, so that no two scopes read the same.
func additional(dst []byte, k kind, s Scope) []byte {
	dst = append(dst, format, byte(k))
	dst = appendString(dst, s.Tenant)
	dst = appendString(dst, s.Backend)
	return appendString(dst, s.Principal)
}

// xaes is XAES-256-GCM (C2SP): AES-256-GCM with random nonces of 192 bits, so that the number of ids under one key needs
// no limit; event ids alone would reach the 2^32 of plain AES-GCM within days on a busy tenant.
type xaes struct {
	block cipher.Block
	k1    [aes.BlockSize]byte
	same  [sha256.Size]byte // key of sealSame's nonces
}

func newXAES(secret [32]byte) (xaes, error) {
	block, err := aes.NewCipher(secret[:])
	if err != nil {
		return xaes{}, fmt.Errorf("session: key: %w", err)
	}
	x := xaes{block: block, same: hmacSum(secret[:], "sluice session: nonces of what is sealed to the same")}
	block.Encrypt(x.k1[:], x.k1[:])
	var carry byte
	for i := len(x.k1) - 1; i >= 0; i-- {
		msb := x.k1[i] >> 7
		x.k1[i] = x.k1[i]<<1 | carry
		carry = msb
	}
	x.k1[len(x.k1)-1] ^= carry * 0b10000111
	return x, nil
}

func hmacSum(key []byte, text string) (sum [sha256.Size]byte) {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	h.Sum(sum[:0])
	return sum
}

// derive returns AES-GCM under the key of this nonce; its own nonce is the last 12 bytes.
func (x *xaes) derive(nonce [nonceSize]byte) cipher.AEAD {
	k := make([]byte, 0, 2*aes.BlockSize)
	k = append(k, 0, 1, 'X', 0)
	k = append(k, nonce[:12]...)
	k = append(k, 0, 2, 'X', 0)
	k = append(k, nonce[:12]...)
	for i := range aes.BlockSize {
		k[i] ^= x.k1[i]
		k[aes.BlockSize+i] ^= x.k1[i]
	}
	x.block.Encrypt(k[:aes.BlockSize], k[:aes.BlockSize])
	x.block.Encrypt(k[aes.BlockSize:], k[aes.BlockSize:])
	block, err := aes.NewCipher(k)
	if err != nil {
		panic(err) // 32 bytes are a key
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		panic(err) // AES has blocks of 16 bytes
	}
	return gcm
}
