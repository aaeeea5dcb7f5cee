package mapping

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestOldRowWarnings warns where a mapping says what only the old row lets happen.
func TestOldRowWarnings(t *testing.T) {
	const churn = "item: {brandId: 1, tableName: user, createdAt: $c, updatedAt: $c, data: {id: $id}}\n"
	const fanatics = "{table: public.t, sink: fanatics_approvals, item: {account_tenant_fanid: $fan, invite_approval_map: "
	for name, test := range map[string]struct {
		mapping string
		want    []string
	}{
		"no filter":         {"table: public.t\nsink: stopchurn\n" + churn, nil},
		"filter":            {"table: public.t\nsink: stopchurn\nwhen: a == 1\n" + churn, []string{"mappings[0].when"}},
		"keep":              {"table: public.t\nsink: stopchurn\nwhen: a == 1\nleave: keep\n" + churn, nil},
		"filter of changes": {"table: public.t\nsink: stopchurn\nwhen: changed(\"a\")\n" + churn, nil},
		"no deletes":        {"table: public.t\nsink: stopchurn\non: [insert, update]\nwhen: a == 1\n" + churn, nil},
		"fanbase":           {"table: public.t\nsink: fanbase_queue\nwhen: a == 1\nitem: {id: $id}\n", nil},
		"row per tier":      {fanatics + "{\"=tier\": $ok}}}", nil},
		"map":               {fanatics + "$m}}", []string{"mappings[0].item.invite_approval_map"}},
		"computed map":      {fanatics + "'=object(m, #, true)'}}", []string{"mappings[0].item.invite_approval_map"}},
	} {
		t.Run(name, func(t *testing.T) {
			src, sink := sourceOf(t, test.mapping)
			tmpl, problems := Parse(src, specs[sink])
			if err := problems.Err(); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, w := range tmpl.OldRowWarnings() {
				got = append(got, w.Path)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}
