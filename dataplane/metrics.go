package dataplane

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicegate/sluice/dataplane/snapshot"
)

// metrics tell what is served, as it is when they are asked for.
type metrics struct {
	store     *snapshot.Store
	connected func() bool
	nacks     *prometheus.CounterVec

	revision, stale, refused, up *prometheus.Desc
}

func newMetrics(r prometheus.Registerer, store *snapshot.Store, connected func() bool) *metrics {
	m := &metrics{
		store: store, connected: connected,
		nacks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_nacks_total", Help: "Revisions of which a part was refused.",
		}, []string{"tenant"}),
		revision: prometheus.NewDesc("sluice_active_revision", "Revision that is served.", []string{"tenant"}, nil),
		stale:    prometheus.NewDesc("sluice_stale", "1 if the configuration is from disk and not confirmed since.", []string{"tenant"}, nil),
		refused:  prometheus.NewDesc("sluice_refusals", "Reasons for which units keep an older form or answer 503.", []string{"tenant"}, nil),
		up:       prometheus.NewDesc("sluice_control_plane_connected", "1 while the stream to the control plane is up.", nil, nil),
	}
	r.MustRegister(m, m.nacks)
	return m
}

func (m *metrics) committed(tenant string, _ int64, refused int) {
	if refused > 0 {
		m.nacks.WithLabelValues(tenant).Inc()
	}
}

// Describe implements [prometheus.Collector].
func (m *metrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.revision, m.stale, m.refused, m.up} {
		out <- d
	}
}

// Collect implements [prometheus.Collector].
func (m *metrics) Collect(out chan<- prometheus.Metric) {
	for t := range m.store.Load().Tenants() {
		out <- prometheus.MustNewConstMetric(m.revision, prometheus.GaugeValue, float64(t.Revision), t.Name)
		out <- prometheus.MustNewConstMetric(m.stale, prometheus.GaugeValue, number(t.Stale), t.Name)
		out <- prometheus.MustNewConstMetric(m.refused, prometheus.GaugeValue, float64(len(t.Refusals())), t.Name)
	}
	out <- prometheus.MustNewConstMetric(m.up, prometheus.GaugeValue, number(m.connected()))
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
