package policy

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/bcrypt"
	"golang.org/x/sync/semaphore"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

const (
	// maxBcryptCost keeps one password below a second of a processor.
	maxBcryptCost = 14
	// verifiedFor is how long a password that was right is not hashed again.
	verifiedFor = time.Minute
	// hashingWait is how long a request waits for its turn to have a password hashed.
	hashingWait  = 2 * time.Second
	maxHtpasswd  = 1 << 20
	maxBasicSize = 4 << 10
)

var basicLocation = location{header: "Authorization", prefix: "Basic "}

// basicAuth is HTTP Basic authentication (RFC 7617).
type basicAuth struct {
	mode     policyv1.JwtAuth_Mode
	realm    string
	users    map[string][]byte // bcrypt hashes
	nobody   []byte            // what is compared where there is no such user, so that it takes as long
	unknown  bool              // the users are not known here
	secret   [sha256.Size]byte // keys verified, which must not hold what passwords can be guessed from
	verified verifiedCache     // new with each compilation, so a user who was removed is forgotten
	hashing  *hashing          // nil: this process authenticates nobody
}

func compileBasicAuth(b *policyv1.BasicAuth, r Resolver, field string, errs *problems) *basicAuth {
	out := &basicAuth{mode: compileMode(b.GetMode(), field+".mode", errs), realm: b.GetRealm(), users: map[string][]byte{}}
	if out.realm == "" {
		out.realm = "sluice"
	}
	if strings.ContainsFunc(out.realm, func(c rune) bool { return c < ' ' || c > '~' || c == '"' || c == '\\' }) {
		errs.add(field+".realm", "holds what no realm may: printable ASCII without quotes and backslashes")
	}
	if r.Runtime != nil {
		out.hashing = &r.Runtime.hashing
	}
	_, _ = rand.Read(out.secret[:]) // never fails
	if b.GetHtpasswd() == nil {
		errs.add(field+".htpasswd", "is missing, and nobody would ever be let in")
		return out
	}
	value, err := r.credential(b.GetHtpasswd())
	switch {
	case errors.Is(err, ErrUnknown):
		out.unknown = true
	case err != nil:
		errs.add(field+".htpasswd", "%v", err)
	default:
		out.read(value.Reveal(), field+".htpasswd", errs)
	}
	return out
}

// read takes lines as `htpasswd -B` writes them. What is wrong is told by its line and never shown.
func (b *basicAuth) read(text, field string, errs *problems) {
	if len(text) > maxHtpasswd {
		errs.add(field, "is larger than %d bytes", maxHtpasswd)
		return
	}
	highest, number, before := 0, 0, len(errs.errs)
	for line := range strings.SplitSeq(text, "\n") {
		number++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		user, hash, ok := strings.Cut(line, ":")
		if !ok || user == "" {
			errs.add(field, "line %d is no `user:hash`; `htpasswd -B` writes such lines", number)
			continue
		}
		if _, twice := b.users[user]; twice {
			errs.add(field, "line %d has a user that a line before it has", number)
			continue
		}
		cost, why := bcryptCost(hash)
		if why != "" {
			errs.add(field, "line %d: %s", number, why)
			continue
		}
		b.users[user] = []byte(hash)
		if cost > highest {
			highest, b.nobody = cost, []byte(hash)
		}
	}
	if len(b.users) == 0 && len(errs.errs) == before {
		errs.add(field, "names no user, and nobody would ever be let in")
	}
	if b.nobody != nil { // a hash that no password has
		b.nobody = append(b.nobody[:len(b.nobody)-1:len(b.nobody)-1], otherDigit(b.nobody[len(b.nobody)-1]))
	}
}

// otherDigit is a digit of bcrypt's base64 that stands for other bits, the last digit's spare ones left alone.
func otherDigit(c byte) byte {
	const digits = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	return digits[strings.IndexByte(digits, c)^32]
}

// bcryptCost returns why a hash is not accepted, or "".
func bcryptCost(hash string) (cost int, why string) {
	const way = "; write the user anew with `htpasswd -B`"
	switch {
	case strings.HasPrefix(hash, "$2a$"), strings.HasPrefix(hash, "$2b$"), strings.HasPrefix(hash, "$2y$"):
	case strings.HasPrefix(hash, "$apr1$"), strings.HasPrefix(hash, "$1$"):
		return 0, "is hashed with MD5, which is guessed in no time" + way
	case strings.HasPrefix(hash, "{"):
		return 0, "is hashed with plain SHA, which is guessed in no time" + way
	default:
		return 0, "holds no bcrypt hash, and plain passwords and crypt are not accepted" + way
	}
	cost, err := bcrypt.Cost([]byte(hash))
	if err != nil || len(hash) != 60 || strings.ContainsFunc(hash[7:], func(c rune) bool {
		return c != '.' && c != '/' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z')
	}) {
		return 0, "holds a bcrypt hash that is damaged" + way
	}
	if cost > maxBcryptCost {
		return 0, fmt.Sprintf("has a bcrypt cost of %d, and each request would cost seconds; write the user anew with `htpasswd -B -C 12`", cost)
	}
	return cost, ""
}

// check returns the principal of the user whom r names: nil without one, *AuthError for a wrong password.
func (b *basicAuth) check(r *http.Request) (p *Principal, shown bool, err *AuthError) {
	encoded, shown := basicLocation.get(r)
	if !shown {
		return nil, false, nil
	}
	user, password, ok := parseBasic(encoded)
	if !ok {
		return nil, true, b.refuse()
	}
	if b.unknown || b.hashing == nil {
		return nil, true, &AuthError{Status: http.StatusServiceUnavailable, Reason: "users are not known here"}
	}
	mac := hmac.New(sha256.New, b.secret[:])
	mac.Write([]byte(user + "\x00" + password)) // no user holds NUL
	key := [sha256.Size]byte(mac.Sum(nil))
	now := time.Now()
	if p := b.verified.get(key, now); p != nil {
		return p, true, nil
	}
	hash, known := b.users[user]
	if !known {
		hash = b.nobody
	}
	if !b.hashing.begin(r.Context()) {
		return nil, true, busyHashing
	}
	right := bcrypt.CompareHashAndPassword(hash, []byte(password)) == nil
	b.hashing.end()
	if !right || !known {
		return nil, true, b.refuse()
	}
	p = &Principal{ID: "basic:" + user, Name: user, Username: user}
	b.verified.put(key, p, now.Add(verifiedFor), now)
	return p, true, nil
}

var busyHashing = &AuthError{Status: http.StatusServiceUnavailable, Reason: "too many passwords are being checked; try again"}

// parseBasic takes apart what follows `Basic `. The name has no colon, and neither has a control character (RFC 7617
// section 2).
func parseBasic(encoded string) (user, password string, ok bool) {
	if encoded == "" || len(encoded) > maxBasicSize {
		return "", "", false
	}
	b, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return "", "", false
	}
	user, password, ok = strings.Cut(string(b), ":")
	control := func(c rune) bool { return c < ' ' || c == 0x7f }
	return user, password, ok && user != "" && !strings.ContainsFunc(user, control) && !strings.ContainsFunc(password, control)
}

func (b *basicAuth) refuse() *AuthError {
	return &AuthError{Status: http.StatusUnauthorized, Challenge: b.challenge(), Reason: "the user or the password is not valid"}
}

func (b *basicAuth) challenge() string { return `Basic realm="` + b.realm + `", charset="UTF-8"` }

// hashing bounds how many passwords are hashed at a time: half of the processors, so that strangers who guess leave
// the other half to those whom the proxy knows. Who comes first is served first. The zero value is ready.
type hashing struct {
	once  sync.Once
	turns *semaphore.Weighted
}

func (h *hashing) begin(ctx context.Context) bool {
	h.once.Do(func() { h.turns = semaphore.NewWeighted(int64(max(1, runtime.GOMAXPROCS(0)/2))) })
	ctx, cancel := context.WithTimeout(ctx, hashingWait)
	defer cancel()
	return h.turns.Acquire(ctx, 1) == nil
}

func (h *hashing) end() { h.turns.Release(1) }
