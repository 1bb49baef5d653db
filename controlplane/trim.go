package controlplane

import (
	"context"

	"github.com/sluicegate/sluice/controlplane/store"
)

// trim forgets old history of tenants whose log has grown by a good piece, and old outcomes, which requests that change
// nothing leave too. It is no part of an edit: if it goes wrong nothing is lost but space, and the next one tries again.
func (p *publisher) trim(steps []*step) {
	world := p.world.Load()
	due := map[string]bool{}
	for _, s := range steps {
		for _, name := range s.touched {
			if state := world.tenant(name); state != nil && state.view.Revision%trimEvery == 0 && state.view.Revision >= keepHistory {
				due[name] = true
			}
		}
		if s.asked == "" {
			continue
		}
		if p.asked == nil {
			p.asked = map[string]int{}
		}
		if p.asked[s.asked]++; p.asked[s.asked] >= trimEvery {
			due[s.asked] = true
		}
	}
	for name := range due {
		delete(p.asked, name)
		if world.tenant(name) == nil {
			continue // deleted in the same batch
		}
		edit, ok, err := store.Of(p.store, name).Trim(context.Background(), keepHistory, p.now())
		if err == nil && ok {
			err = p.store.Commit(context.Background(), store.Txn{edit})
		}
		if err != nil {
			p.log.Warn("trim history", "tenant", name, "err", err)
		}
	}
}
