package store

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
)

const outcomeLife = 24 * time.Hour // a retry of a request comes sooner

// Trim returns the edit that forgets all but the newest keep revisions of the log, the outcomes of old requests,
// and the contents and sealed values that nothing refers to any more. ok is false if there is nothing to forget.
// What it read must still be true when it is committed: it asks for the head that it saw.
func (t Tenant) Trim(ctx context.Context, keep int, now time.Time) (edit Edit, ok bool, err error) {
	head, objects, err := t.Objects(ctx)
	if err != nil {
		return Edit{}, false, err
	}
	entries, err := t.Log(ctx, 0)
	if err != nil {
		return Edit{}, false, err
	}
	edit = Edit{Space: t.name, If: head}
	live := map[string]bool{}
	for _, o := range objects {
		live[o.Hash] = true
	}
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

// trimContents drops blobs that are not live, and sealed values that no live blob names.
func (t Tenant) trimContents(ctx context.Context, edit *Edit, live map[string]bool) error {
	blobs, err := t.s.Range(ctx, t.name, Query{Prefix: blobPrefix})
	if err != nil {
		return err
	}
	var texts []string
	for _, pair := range blobs {
		hash := strings.TrimPrefix(pair.Key, blobPrefix)
		if !live[hash] {
			edit.Delete = append(edit.Delete, pair.Key)
			continue
		}
		o, err := t.Content(ctx, hash)
		if err != nil {
			return err
		}
		texts = append(texts, protojson.Format(o))
	}
	sealed, err := t.s.Range(ctx, t.name, Query{Prefix: sealedPrefix})
	if err != nil {
		return err
	}
	all := strings.Join(texts, "\n")
	for _, pair := range sealed {
		// A fingerprint is 128 bits in base64url: it occurs in the text only where an object names it.
		if !strings.Contains(all, strings.TrimPrefix(pair.Key, sealedPrefix)) {
			edit.Delete = append(edit.Delete, pair.Key)
		}
	}
	return nil
}
