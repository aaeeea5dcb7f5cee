package replication

import (
	"fmt"
	"testing"
	"time"
)

// BenchmarkSurvey is what one survey costs, the server's part included: when nothing has changed, and when the catalogue has to be read.
func BenchmarkSurvey(b *testing.B) {
	for _, tables := range []int{50, 5000} {
		for _, changed := range []bool{false, true} {
			b.Run(fmt.Sprintf("tables=%d/changed=%v", tables, changed), func(b *testing.B) {
				url := postgres.NewDatabase(b)
				v := surveyorOf(b, url, manyTables(b, url, tables))
				begun := time.Now()
				for b.Loop() {
					if changed {
						v.view = nil
					}
					if err := v.survey(b.Context()); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(time.Since(begun).Seconds()*1000/float64(b.N), "ms/survey")
			})
		}
	}
}
