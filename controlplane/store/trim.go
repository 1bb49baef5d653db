package store

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

const outcomeLife = 24 * time.Hour // a retry of a request comes sooner

// Trim returns the edit that forgets all but the newest keep revisions of the log, the outcomes of old requests,
// and the contents and sealed values that nothing refers to any more. ok is false if there is nothing to forget.
// What it read must still be true when it is committed: it asks for the head that it saw.
func (t Tenant) Trim(ctx context.Context, keep int, now time.Time) (edit Edit, ok bool, err error) {
	head, err := t.s.Revision(ctx, t.name)
	if err != nil {
		return Edit{}, false, err
	}
	live, err := t.hashes(ctx)
	if err != nil {
		return Edit{}, false, err
	}
	entries, err := t.Log(ctx, 0)
	if err != nil {
		return Edit{}, false, err
	}
	edit = Edit{Space: t.name, If: head}
	for i, entry := range entries {
		if i >= keep {
			edit.Delete = append(edit.Delete, logKey(entry.Revision))
			continue
		}
		for _, op := range entry.Ops {
			live[op.Old], live[op.New] = true, true
		}
	}
	if err := t.trimContents(ctx, &edit, live); err != nil {
		return Edit{}, false, err
	}
	outcomes, err := t.s.Range(ctx, t.name, Query{Prefix: askedPrefix})
	if err != nil {
		return Edit{}, false, err
	}
	for _, pair := range outcomes {
		var o Outcome
		if json.Unmarshal(pair.Value, &o) != nil || now.Sub(o.Time) > outcomeLife {
			edit.Delete = append(edit.Delete, pair.Key)
		}
	}
	return edit, len(edit.Delete) > 0, nil
}

// hashes is the set of the contents that the tenant's objects have.
func (t Tenant) hashes(ctx context.Context) (map[string]bool, error) {
	records, err := t.s.Range(ctx, t.name, Query{Prefix: objectPrefix})
	if err != nil {
		return nil, err
	}
	set := make(map[string]bool, len(records))
	for _, pair := range records {
		var r objectRecord
		if err := json.Unmarshal(pair.Value, &r); err != nil {
			return nil, fmt.Errorf("tenant %q: record of %s: %w", t.name, strings.TrimPrefix(pair.Key, objectPrefix), err)
		}
		set[r.Hash] = true
	}
	return set, nil
}

// trimContents drops blobs that are not live, and sealed values that no live blob names.
func (t Tenant) trimContents(ctx context.Context, edit *Edit, live map[string]bool) error {
	blobs, err := t.s.Range(ctx, t.name, Query{Prefix: blobPrefix})
	if err != nil {
		return err
	}
	sealed, err := t.s.Range(ctx, t.name, Query{Prefix: sealedPrefix})
	if err != nil {
		return err
	}
	unnamed, lengths := make(map[string]bool, len(sealed)), [256]bool{} // fingerprints; lengths that they have
	for _, pair := range sealed {
		fingerprint := strings.TrimPrefix(pair.Key, sealedPrefix)
		if len(fingerprint) < 128 { // in one byte
			unnamed[fingerprint], lengths[len(fingerprint)] = true, true
		}
	}
	for _, pair := range blobs {
		if !live[strings.TrimPrefix(pair.Key, blobPrefix)] {
			edit.Delete = append(edit.Delete, pair.Key)
			continue
		}
		// In an encoded object a string stands behind its length. A fingerprint is 128 bits: it occurs where an object names
		// it and nowhere else. So nothing has to be decoded, in the loop that all tenants' edits wait for.
		for i, n := range pair.Value {
			if end := i + 1 + int(n); lengths[n] && end <= len(pair.Value) {
				delete(unnamed, string(pair.Value[i+1:end]))
			}
		}
	}
	for _, fingerprint := range slices.Sorted(maps.Keys(unnamed)) {
		edit.Delete = append(edit.Delete, sealedPrefix+fingerprint)
	}
	return nil
}
