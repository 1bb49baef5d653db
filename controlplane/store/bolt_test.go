package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func open(t *testing.T, path string) *Bolt {
	t.Helper()
	b, err := OpenBolt(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// model is a Store that cannot be wrong: a map.
type model map[string]*modelSpace

type modelSpace struct {
	revision int64
	pairs    map[string]string
}

func (m model) clone() model {
	c := model{}
	for name, s := range m {
		c[name] = &modelSpace{revision: s.revision, pairs: maps.Clone(s.pairs)}
	}
	return c
}

// commit does what Bolt.Commit promises; ok is false where a condition does not hold.
func (m model) commit(txn Txn) (after model, ok bool) {
	after = m.clone()
	for _, e := range txn {
		s := after[e.Space]
		head := int64(0)
		if s != nil {
			head = s.revision
		}
		if e.If != Unchecked && e.If != head {
			return m, false
		}
		if e.Drop {
			delete(after, e.Space)
			s = nil
			if len(e.Put)+len(e.Claim) == 0 && e.Revision == 0 {
				continue
			}
		}
		if s == nil {
			s = &modelSpace{pairs: map[string]string{}}
			after[e.Space] = s
		}
		for _, k := range e.Delete {
			delete(s.pairs, k)
		}
		for k, v := range e.Claim {
			if have, ok := s.pairs[k]; ok && have != string(v) {
				return m, false
			}
			s.pairs[k] = string(v)
		}
		for k, v := range e.Put {
			s.pairs[k] = string(v)
		}
		if e.Revision != 0 {
			s.revision = e.Revision
		}
	}
	return after, true
}

// TestRandomOperations holds the file against a map, through random transactions, closed and opened now and then.
func TestRandomOperations(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(seed, 7))
			path := filepath.Join(t.TempDir(), "store.db")
			b, m := open(t, path), model{Cluster: {pairs: map[string]string{}}}
			refused := 0
			for range 150 {
				txn := randomTxn(r, m)
				after, ok := m.commit(txn)
				err := b.Commit(t.Context(), txn)
				if ok != (err == nil) {
					t.Fatalf("Commit(%+v) = %v, the model says ok = %v", txn, err, ok)
				}
				if m = after; !ok {
					refused++
				}
				if r.IntN(20) == 0 {
					if err := b.Close(); err != nil {
						t.Fatal(err)
					}
					b = open(t, path)
				}
				if r.IntN(5) == 0 {
					compare(t, b, m)
				}
			}
			compare(t, b, m)
			if err := b.Check(); err != nil {
				t.Error(err)
			}
			if refused == 0 {
				t.Error("no transaction was refused: the test tests no conditions")
			}
		})
	}
}

func randomTxn(r *rand.Rand, m model) Txn {
	spaces := []string{Cluster, "a", "ab", "b"}
	key := func() string { return fmt.Sprintf("%c/%d", 'k'+rune(r.IntN(3)), r.IntN(12)) }
	var txn Txn
	heads := map[string]int64{}
	for name, s := range m {
		heads[name] = s.revision
	}
	for range 1 + r.IntN(3) {
		e := Edit{Space: spaces[r.IntN(len(spaces))], Put: map[string][]byte{}, Claim: map[string][]byte{}}
		e.If = Unchecked
		if r.IntN(2) == 0 {
			e.If = heads[e.Space] + int64(r.IntN(8)/7) // now and then a wrong one
		}
		e.Drop = e.Space != Cluster && r.IntN(12) == 0
		for range r.IntN(4) {
			e.Put[key()] = []byte(strings.Repeat("v", r.IntN(300)))
		}
		for range r.IntN(3) {
			e.Delete = append(e.Delete, key())
		}
		if r.IntN(3) == 0 {
			k := "claim/" + key()
			e.Claim[k] = []byte{byte('0' + r.IntN(2))}
		}
		if r.IntN(2) == 0 {
			e.Revision = heads[e.Space] + 1
		}
		switch {
		case e.Revision != 0:
			heads[e.Space] = e.Revision
		case e.Drop:
			heads[e.Space] = 0
		}
		txn = append(txn, e)
	}
	return txn
}

func compare(t *testing.T, b *Bolt, want model) {
	t.Helper()
	spaces, err := b.Spaces(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wantSpaces := slices.DeleteFunc(slices.Sorted(maps.Keys(want)), func(s string) bool { return s == Cluster })
	if diff := cmp.Diff(wantSpaces, spaces, cmpNil()); diff != "" {
		t.Fatalf("Spaces (-want +got):\n%s", diff)
	}
	for _, space := range append(spaces, Cluster) {
		revision, err := b.Revision(t.Context(), space)
		if err != nil || revision != want[space].revision {
			t.Fatalf("Revision(%q) = %d, %v, want %d", space, revision, err, want[space].revision)
		}
		for _, prefix := range []string{"", "k/", "claim/", "k/1"} {
			var wantKeys []string
			for _, k := range slices.Sorted(maps.Keys(want[space].pairs)) {
				if strings.HasPrefix(k, prefix) {
					wantKeys = append(wantKeys, k+"="+want[space].pairs[k])
				}
			}
			for _, q := range []Query{{Prefix: prefix}, {Prefix: prefix, Reverse: true}, {Prefix: prefix, Limit: 3}, {Prefix: prefix, Reverse: true, Limit: 2}} {
				expect := slices.Clone(wantKeys)
				if q.Reverse {
					slices.Reverse(expect)
				}
				if q.Limit > 0 {
					expect = expect[:min(q.Limit, len(expect))]
				}
				pairs, err := b.Range(t.Context(), space, q)
				if err != nil {
					t.Fatal(err)
				}
				var got []string
				for _, p := range pairs {
					got = append(got, p.Key+"="+string(p.Value))
				}
				if diff := cmp.Diff(expect, got, cmpNil()); diff != "" {
					t.Fatalf("Range(%q, %+v) (-want +got):\n%s", space, q, diff)
				}
			}
		}
	}
}

// cmpNil makes an empty slice equal to none.
func cmpNil() cmp.Option {
	return cmp.Transformer("nil", func(s []string) string { return strings.Join(s, "\n") })
}

// A refused transaction in a batch takes nothing of itself and nothing of its neighbours away.
func TestBatchKeepsNeighbours(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "store.db"))
	if err := b.Commit(t.Context(), Txn{{Space: "t", Revision: 5}}); err != nil {
		t.Fatal(err)
	}
	batch := []*commit{
		{txn: Txn{{Space: "a", If: Unchecked, Put: map[string][]byte{"k": []byte("1")}}}},
		{txn: Txn{{Space: "b", If: Unchecked, Put: map[string][]byte{"k": []byte("2")}}, {Space: "t", If: 4}}},
		{txn: Txn{{Space: Cluster, If: Unchecked, Claim: map[string][]byte{"claim/x": []byte("a")}}}},
		{txn: Txn{{Space: Cluster, If: Unchecked, Claim: map[string][]byte{"claim/x": []byte("b")}}}},
		{txn: Txn{{Space: "a", If: Unchecked, Put: map[string][]byte{strings.Repeat("k", 1<<16): []byte("1")}}}},
		{txn: Txn{{Space: "a", If: Unchecked, Put: map[string][]byte{"l": []byte("3")}}}},
	}
	for _, c := range batch {
		c.reply = make(chan error, 1)
	}
	b.commit(slices.Clone(batch))
	var conflict *ConflictError
	var taken *TakenError
	for i, c := range batch {
		err := <-c.reply
		switch i {
		case 1:
			if !errors.As(err, &conflict) || conflict.Have != 5 || conflict.Want != 4 {
				t.Errorf("commit 1: %v, want a conflict of 5 and 4", err)
			}
		case 3:
			if !errors.As(err, &taken) || taken.Key != "claim/x" {
				t.Errorf("commit 3: %v, want claim/x taken", err)
			}
		case 4:
			if err == nil {
				t.Error("commit 4: a key of 64 KiB was taken")
			}
		default:
			if err != nil {
				t.Errorf("commit %d: %v", i, err)
			}
		}
	}
	if _, err := b.Get(t.Context(), "b", "k"); !errors.Is(err, ErrNotFound) {
		t.Errorf("b/k after a refused transaction: %v, want ErrNotFound", err)
	}
	if v, err := b.Get(t.Context(), "a", "l"); err != nil || !bytes.Equal(v, []byte("3")) {
		t.Errorf("a/l = %q, %v", v, err)
	}
}

func TestCommitsShareAnFsync(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "store.db"))
	before := b.db.Stats()
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			if err := b.Commit(context.Background(), Txn{{Space: "t", If: Unchecked, Put: map[string][]byte{fmt.Sprint("k", i): {1}}}}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	after := b.db.Stats()
	written := after.Sub(&before)
	// A transaction of its own writes four pages or more.
	if writes := written.TxStats.GetWrite(); writes == 0 || writes > 600 {
		t.Errorf("200 commits made %d page writes: they shared no transaction", writes)
	}
	if pairs, err := b.Range(t.Context(), "t", Query{}); err != nil || len(pairs) != 200 {
		t.Errorf("%d pairs, %v, want 200", len(pairs), err)
	}
}

func TestOneProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	open(t, path)
	if _, err := OpenBolt(path); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("second OpenBolt: %v", err)
	}
}

func TestClosedStoreRefuses(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "store.db"))
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := b.Commit(t.Context(), Txn{{Space: "t"}}); err == nil {
		t.Error("Commit after Close returned nil")
	}
}

func TestWatchKeepsTheLastEventOfEachSpace(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "store.db"))
	w := b.Watch()
	defer w.Close()
	for i := range int64(3) {
		if err := b.Commit(t.Context(), Txn{{Space: "a", If: i, Revision: i + 1}, {Space: "b", If: i, Revision: i + 1}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Commit(t.Context(), Txn{{Space: "b", If: 3, Drop: true}}); err != nil {
		t.Fatal(err)
	}
	events, err := w.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(events, func(a, b Event) int { return strings.Compare(a.Space, b.Space) })
	if diff := cmp.Diff([]Event{{Space: "a", Revision: 3}, {Space: "b", Dropped: true}}, events); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if events, err := w.Next(ctx); err == nil {
		t.Errorf("more events: %v", events)
	}
}
