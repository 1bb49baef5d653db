package session

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

var (
	oldKey = Key{ID: [4]byte{1, 2, 3, 4}, Secret: [32]byte(bytes.Repeat([]byte{7}, 32))}
	newKey = Key{ID: [4]byte{5, 6, 7, 8}, Secret: [32]byte(bytes.Repeat([]byte{9}, 32))}
	alice  = Scope{Tenant: "acme", Backend: "acme/backend/tools", Principal: "jwt:https://idp\x00alice"}
)

func codec(t testing.TB, keys ...Key) *Codec {
	t.Helper()
	c, err := New(keys)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func state() State {
	s := State{
		Seed:         Nonce{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16},
		Version:      "2025-11-25",
		ClientInfo:   `{"name":"c","version":"1"}`,
		Capabilities: `{"sampling":{}}`,
		Prefixed:     true,
		Several:      true,
		Issued:       time.Unix(1_800_000_000, 0),
		Expires:      time.Unix(4_102_444_800, 0), // 2100
		Targets:      []Target{{"a", "up-1", "2025-06-18", 0xfedcba98}, {"b", "", "2025-11-25", 0}},
		Owner:        "edge-eu/p1",
	}
	s.Nonce = alice.Nonce(s.Seed)
	return s
}

// Vectors of the C2SP specification of XAES-256-GCM.
func TestXAESVectors(t *testing.T) {
	for _, tt := range []struct {
		key      byte
		ad, want string
	}{
		{1, "", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"},
		{3, "c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"},
	} {
		x, err := newXAES([32]byte(bytes.Repeat([]byte{tt.key}, 32)))
		if err != nil {
			t.Fatal(err)
		}
		nonce := [nonceSize]byte([]byte("ABCDEFGHIJKLMNOPQRSTUVWX"))
		got := x.derive(nonce).Seal(nil, nonce[12:], []byte("XAES-256-GCM"), []byte(tt.ad))
		if hex.EncodeToString(got) != tt.want {
			t.Errorf("key %d: got %x, want %s", tt.key, got, tt.want)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	c := codec(t, newKey, oldKey)
	id, err := c.Encode(alice, state())
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.Decode(alice, id)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(state(), *got); diff != "" {
		t.Errorf("Decode (-want +got):\n%s", diff)
	}
	for i := range len(id) {
		if id[i] <= ' ' || id[i] > '~' {
			t.Fatalf("byte %d of the id is %q: not visible ASCII", i, id[i])
		}
	}
	again, _ := c.Encode(alice, state())
	if again == id {
		t.Error("the same state sealed twice gave one id")
	}
}

const goldenID = "AQECAwRPZkGNgN1Nhpezq5SGmvFsTi0gKyuLVnREFJ1D7V5q5gKk0F_8G4an4cqNnXKWBI5tpLfRoRzT_h69UBoSz9KW8M0VdfQmCWMxQGYT_-AhkJB-v2AsoyWlhBt9wQAoYphPzH4x7WTdx0kNRdxFlVn8oIN_LnLQQ3ibJtW0VI7RvIuquMoydSvGYQO4WAFheinVhbcLn_OTnhzTEyMFCD_Ss6u1ibyuDE1Ri0Q"

// An id of the released format opens for ever; who changes the layout makes a new format beside it.
func TestGoldenFormat1(t *testing.T) {
	got, err := codec(t, newKey, oldKey).Decode(alice, goldenID)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(state(), *got); diff != "" {
		t.Errorf("Decode (-want +got):\n%s", diff)
	}
}

// A position of before it said what was asked.
func TestGoldenPosition(t *testing.T) {
	const sealed = "AQECAwShimUAx5HOrSL5xaZtAAzd7Lqsh2Xk1soZ04IAGULLA50qcCb4pRpFBcqyDQAEby8BwKcUcTeSKRDtGIzXfPg"
	got, err := codec(t, oldKey).OpenPosition(alice, Nonce{1}, sealed)
	if diff := cmp.Diff(Position{Events: []Event{{"a", "e1"}}}, got); err != nil || diff != "" {
		t.Errorf("OpenPosition: %v (-want +got):\n%s", err, diff)
	}
}

func TestRotation(t *testing.T) {
	before, _ := codec(t, oldKey).Encode(alice, state())
	if _, err := codec(t, newKey, oldKey).Decode(alice, before); err != nil {
		t.Errorf("an old key that still opens: %v", err)
	}
	if _, err := codec(t, newKey).Decode(alice, before); !errors.Is(err, ErrInvalid) {
		t.Errorf("a withdrawn key: %v, want ErrInvalid", err)
	}
	after, _ := codec(t, newKey, oldKey).Encode(alice, state())
	if _, err := codec(t, newKey).Decode(alice, after); err != nil {
		t.Errorf("the first key seals: %v", err)
	}
	if _, err := New(nil); err == nil {
		t.Error("New without keys: no error")
	}
	if _, err := New([]Key{oldKey, oldKey}); err == nil {
		t.Error("New with one key id twice: no error")
	}
}

func TestRefused(t *testing.T) {
	c := codec(t, newKey)
	id, _ := c.Encode(alice, state())
	other := func(change func(*Scope)) Scope { s := alice; change(&s); return s }
	cursor := c.SealCursor(alice, Cursor{Epoch: "e"})
	for name, try := range map[string]struct {
		scope Scope
		id    string
	}{
		"another tenant":         {other(func(s *Scope) { s.Tenant = "evil" }), id},
		"another backend":        {other(func(s *Scope) { s.Backend = "acme/backend/other" }), id},
		"another principal":      {other(func(s *Scope) { s.Principal = "jwt:https://idp\x00bob" }), id},
		"anonymous":              {other(func(s *Scope) { s.Principal = "" }), id},
		"scope parts moved":      {Scope{Tenant: alice.Tenant + alice.Backend, Principal: alice.Principal}, id},
		"empty":                  {alice, ""},
		"cut":                    {alice, id[:len(id)-4]},
		"longer":                 {alice, id + "AAAA"},
		"padded":                 {alice, id + "="},
		"newline inside":         {alice, id[:9] + "\n" + id[9:]},
		"carriage return at end": {alice, id + "\r"},
		"standard alphabet":      {alice, "+" + id[1:]},
		"another kind":           {alice, cursor},
		"over the limit":         {alice, id + strings.Repeat("A", MaxIDSize)},
	} {
		if _, err := c.Decode(try.scope, try.id); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: err = %v, want ErrInvalid", name, err)
		}
	}
	// One session, one id: whatever character is changed, it opens no more.
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	for i := range len(id) {
		for _, r := range alphabet {
			edited := id[:i] + string(r) + id[i+1:]
			if edited == id {
				continue
			}
			if _, err := c.Decode(alice, edited); !errors.Is(err, ErrInvalid) {
				t.Fatalf("character %d changed to %q: err = %v, want ErrInvalid", i, r, err)
			}
		}
	}
}

func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := codec(t, newKey)
		s := state()
		s.Expires = time.Now().Add(time.Hour)
		id, _ := c.Encode(alice, s)
		time.Sleep(time.Hour - time.Second)
		if _, err := c.Decode(alice, id); err != nil {
			t.Errorf("a second before expiry: %v", err)
		}
		time.Sleep(time.Second)
		if _, err := c.Decode(alice, id); !errors.Is(err, ErrInvalid) {
			t.Errorf("at expiry: %v, want ErrInvalid", err)
		}
	})
}

func TestTooLarge(t *testing.T) {
	c := codec(t, newKey)
	s := state()
	s.Targets = nil
	for range 60 {
		s.Targets = append(s.Targets, Target{Name: "target", ID: strings.Repeat("x", 120), Version: "2025-11-25"})
	}
	var size *SizeError
	if _, err := c.Encode(alice, s); !errors.As(err, &size) || !strings.Contains(err.Error(), "60 targets") {
		t.Errorf("60 long ids: %v, want a SizeError that says 60 targets", err)
	}
	s = state()
	s.Capabilities = `{"experimental":{"x":"` + strings.Repeat("y", MaxClientSize) + `"}}`
	if _, err := c.Encode(alice, s); !errors.As(err, &size) || !strings.Contains(err.Error(), "capabilities") {
		t.Errorf("huge capabilities: %v, want a SizeError that says so", err)
	}
	// 40 targets with ids as go-sdk makes them must fit.
	s = state()
	s.Targets = nil
	for range 40 {
		s.Targets = append(s.Targets, Target{Name: "some-target-name", ID: strings.Repeat("x", 32), Version: "2025-11-25"})
	}
	id, err := c.Encode(alice, s)
	if err != nil {
		t.Fatalf("40 targets: %v", err)
	}
	if _, err := c.Decode(alice, id); err != nil {
		t.Errorf("40 targets: %v", err)
	}
}

func TestTokens(t *testing.T) {
	c := codec(t, newKey)
	n, other := Nonce{1}, Nonce{2}

	for _, cur := range []Cursor{{}, {Epoch: "e", Parts: []Part{{"a", ""}}}, {Parts: []Part{{"a", "x\x00y"}, {"b", "2"}}, Private: true}} {
		got, err := c.OpenCursor(alice, c.SealCursor(alice, cur))
		if diff := cmp.Diff(cur, got); err != nil || diff != "" {
			t.Errorf("cursor: %v (-want +got):\n%s", err, diff)
		}
	}
	for _, id := range []string{"0", `"a"`, "9007199254740993", "1.5"} {
		req := Request{Target: "a", Session: "up", ID: id}
		sealed := c.SealRequest(alice, n, req)
		if again := c.SealRequest(alice, n, req); again != sealed {
			t.Errorf("request %+v: sealed to two ids", req)
		}
		got, err := c.OpenRequest(alice, n, sealed)
		if err != nil || got != req {
			t.Errorf("request %+v: got %+v, %v", req, got, err)
		}
		if _, err := c.OpenRequest(alice, other, sealed); !errors.Is(err, ErrInvalid) {
			t.Errorf("request id in another session: %v", err)
		}
		if _, err := c.OpenPosition(alice, n, sealed); !errors.Is(err, ErrInvalid) {
			t.Errorf("request id as event id: %v", err)
		}
	}
	for _, p := range []Position{{Merged: true}, {Events: []Event{{"a", "1"}}}, {Merged: true, Events: []Event{{"a", "1"}, {"b", ""}}}, {Events: []Event{{"a", "1"}}, Asked: `"\u0061"`}} {
		sealed := c.SealPosition(alice, n, p)
		got, err := c.OpenPosition(alice, n, sealed)
		if diff := cmp.Diff(p, got); err != nil || diff != "" {
			t.Errorf("position: %v (-want +got):\n%s", err, diff)
		}
		if _, err := c.OpenPosition(alice, other, sealed); !errors.Is(err, ErrInvalid) {
			t.Errorf("event id in another session: %v", err)
		}
	}
}

func TestTombstones(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var graves Tombstones
		held := func(tenant string) (n int) {
			if yard, ok := graves.tenants.Load(tenant); ok {
				for i := range yard.(*graveyard) {
					n += len(yard.(*graveyard)[i].until)
				}
			}
			return n
		}
		s := state()
		s.Expires = time.Now().Add(time.Hour)
		if graves.Has("a", s.Nonce) {
			t.Error("a living session is buried")
		}
		graves.Add("a", &s)
		graves.Add("a", &s)
		if !graves.Has("a", s.Nonce) || graves.Has("b", s.Nonce) || held("a") != 1 {
			t.Error("a deleted session is not remembered, or as another tenant's")
		}
		for i := range 2 * maxGraves { // all in one shard
			graves.Add("b", &State{Nonce: Nonce{32, byte(i), byte(i >> 8), 1}, Expires: s.Expires})
		}
		if n := held("b"); n != maxGraves {
			t.Errorf("%d are held after a flood, want %d", n, maxGraves)
		}
		if last := 2*maxGraves - 1; graves.Has("b", Nonce{32, 0, 0, 1}) || !graves.Has("b", Nonce{32, byte(last), byte(last >> 8), 1}) {
			t.Error("it is not the oldest that went")
		}
		if !graves.Has("a", s.Nonce) {
			t.Error("one tenant's deletions push out another's")
		}
		time.Sleep(2 * time.Hour)
		graves.Add("b", &State{Nonce: Nonce{32, 255, 255, 255}, Expires: time.Now().Add(time.Hour)})
		if n := held("b"); n != 1 {
			t.Errorf("%d are held after all expired, want 1", n)
		}
		graves.Add("c", &s)
		if _, ok := graves.tenants.Load("a"); ok || held("b") != 1 {
			t.Error("a tenant stays whose sessions have all expired, or another went")
		}
	})
}

func FuzzDecode(f *testing.F) {
	c := codec(f, oldKey)
	f.Add(goldenID)
	f.Add(goldenID[:len(goldenID)-1])
	f.Add("")
	f.Fuzz(func(t *testing.T, in string) {
		s, err := c.Decode(alice, in)
		if err == nil && in != goldenID {
			t.Errorf("a made-up id %q opened: %+v", in, s)
		}
		_, _ = c.OpenCursor(alice, in)
		_, _ = c.OpenRequest(alice, Nonce{}, in)
		_, _ = c.OpenPosition(alice, Nonce{}, in)
		if call, err := c.OpenCall(alice, in); err == nil {
			t.Errorf("a made-up requestState %q opened: %+v", in, call)
		}
		if stream, err := c.OpenStream(alice, in); err == nil {
			t.Errorf("a made-up stream %q opened: %+v", in, stream)
		}
	})
}

// FuzzRecord: whoever holds a key (a proxy of another version) can still send anything inside the seal.
func FuzzRecord(f *testing.F) {
	c := codec(f, newKey)
	f.Add([]byte{1, 2, 3})
	f.Add(append(make([]byte, 17), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1))
	f.Fuzz(func(t *testing.T, plain []byte) {
		if len(plain) > 4096 {
			return
		}
		if s, err := c.Decode(alice, c.seal(kindSession, alice, plain)); err == nil && s == nil {
			t.Error("neither state nor error")
		}
		_, _ = c.OpenCursor(alice, c.seal(kindCursor, alice, plain))
		_, _ = c.OpenPosition(alice, Nonce{}, c.seal(kindEvent, alice, plain))
		_, _ = c.OpenCall(alice, c.seal(kindCall, alice, plain))
		_, _ = c.OpenStream(alice, c.seal(kindStream, alice, plain))
	})
}

func BenchmarkDecode(b *testing.B) {
	c := codec(b, newKey)
	s := state()
	s.Targets = s.Targets[:1]
	id, _ := c.Encode(alice, s)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Decode(alice, id); err != nil {
			b.Fatal(err)
		}
	}
}

// A task's id is the same whenever it is sealed, and good for its caller alone, in every session and as nothing else.
func TestTaskIDs(t *testing.T) {
	c := codec(t, newKey, oldKey)
	task := Task{Target: "a-b", Tool: "work", ID: "task\x00 1"}
	id := c.SealTask(alice, task)
	if again := codec(t, newKey).SealTask(alice, task); again != id {
		t.Errorf("sealed twice: %s and %s", id, again)
	}
	if got, err := codec(t, newKey).OpenTask(alice, id); err != nil || got != task {
		t.Errorf("opened: %+v, %v", got, err)
	}
	if got, err := c.OpenTask(alice, codec(t, oldKey).SealTask(alice, task)); err != nil || got != task {
		t.Errorf("of the key before: %+v, %v", got, err)
	}
	seen := map[string]bool{id: true}
	for _, other := range []Task{{"a", "work", task.ID}, {"a-b", "", task.ID}, {"a-b", "work", "task"}, {"a-bw", "ork", task.ID}} {
		other := c.SealTask(alice, other)
		if seen[other] {
			t.Error("two tasks have one id")
		}
		seen[other] = true
	}
	bob := alice
	bob.Principal = ""
	for name, open := range map[string]func() (Task, error){
		"another caller": func() (Task, error) { return c.OpenTask(bob, id) },
		"a lost key":     func() (Task, error) { return codec(t, oldKey).OpenTask(alice, id) },
		"a cursor":       func() (Task, error) { return c.OpenTask(alice, c.SealCursor(alice, Cursor{Epoch: "a-b"})) },
		"changed":        func() (Task, error) { return c.OpenTask(alice, id[:20]+string(id[20]^1)+id[21:]) },
		"cut":            func() (Task, error) { return c.OpenTask(alice, id[:len(id)-1]) },
		"empty":          func() (Task, error) { return c.OpenTask(alice, "") },
	} {
		if got, err := open(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	if _, err := c.OpenCursor(alice, id); !errors.Is(err, ErrInvalid) {
		t.Errorf("as a cursor: %v", err)
	}
}
