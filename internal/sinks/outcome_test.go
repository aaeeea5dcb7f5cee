package sinks_test

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/sinks"
)

// deliver sends the bodies to a vendor that answers as told.
func deliver(t *testing.T, typ string, cfg sinks.Config, status int, reply string, bodies ...string) (outcomes []sinks.Outcome, sent string, err error) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		v := newVendor(t)
		v.answer = say(status, reply)
		k := kinds[typ]
		k.cfg = cfg
		items := make([]sinks.Item, len(bodies))
		for i, b := range bodies {
			items[i] = sinks.Item{Op: cdc.OpUpdate, Body: []byte(b)}
		}
		outcomes, err = k.open(t, typ, v).Deliver(t.Context(), items, "key")
		if requests, _ := v.counts(); requests > 0 {
			sent = v.requests[0].body
		}
	})
	return outcomes, sent, err
}

func delivered() sinks.Outcome { return sinks.Outcome{Status: sinks.Delivered} }

func rejected(reason string) sinks.Outcome {
	return sinks.Outcome{Status: sinks.Rejected, Reason: reason}
}

func TestStopChurnRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVendor(t)
		v.answer = say(200, "")
		k := kinds[sinks.TypeStopChurn]
		items := k.items(1, 2, 3, 4)
		items[1].Op, items[2].Op, items[3].Op = cdc.OpUpdate, cdc.OpDelete, cdc.OpRead
		if _, err := k.open(t, sinks.TypeStopChurn, v).Deliver(t.Context(), items, "key"); err != nil {
			t.Fatal(err)
		}
		want := `{"data":[{"type":"insert","data":` + k.item(1) + `},{"type":"update","data":` + k.item(2) +
			`},{"type":"delete","data":` + k.item(3) + `},{"type":"insert","data":` + k.item(4) + `}]}`
		if diff := cmp.Diff(want, v.requests[0].body); diff != "" {
			t.Error(diff)
		}
		if key := v.requests[0].Header.Get("Authorization"); key != "Bearer "+plantedKey {
			t.Errorf("Authorization: %s", key)
		}
		items[2].Op = cdc.OpTruncate
		_, err := k.open(t, sinks.TypeStopChurn, v).Deliver(t.Context(), items, "key")
		checkError(t, err, want400("StopChurn has no operation truncate"))
	})
}

func want400(reason string) want { return want{class: sinks.ClassBadRequest, reason: reason} }

func batchItem(cpf, email string) string {
	return fmt.Sprintf(`{"data":{},"numbers":[{"numberType":3,"number":"5511"},{"numberType":1,"number":%q},{"numberType":4,"number":%q}]}`, cpf, email)
}

func batchReply(codigo int, items string) string {
	return fmt.Sprintf(`{"header":{"codigo":%d,"msg":"Msg"},"data":{"resume":{"total":1},"items":[%s]}}`, codigo, items)
}

func TestFanbaseBatchOutcomes(t *testing.T) {
	const ana, bia, eva = "11111111111", "22222222222", "03333333333"
	three := []string{batchItem(ana, "ana@x.test"), batchItem(bia, "Bia@X.test"), batchItem(eva, "eva@x.test")}
	failedBia := rejected("no bia")
	lacks := rejected("the answer lacks the fan")
	for _, test := range []struct {
		name   string
		status int
		reply  string
		items  []string
		want   []sinks.Outcome
	}{
		{"by CPF out of order", 200, batchReply(1, `{"success":true,"cpf":"333.333.333-3","email":"other@x.test"},{"success":false,"cpf":"22222222222","messageError":"no bia"},{"success":true,"cpf":"11111111111"}`), three, []sinks.Outcome{delivered(), failedBia, delivered()}},
		{"CPF as a number without its zero", 200, batchReply(1, `{"success":false,"cpf":3333333333,"messageError":"no eva"},{"success":true,"cpf":22222222222},{"success":true,"cpf":11111111111}`), three, []sinks.Outcome{delivered(), delivered(), rejected("no eva")}},
		{"CPF without two zeros", 200, batchReply(1, `{"success":false,"cpf":444444444,"messageError":"no"},{"success":true}`), []string{batchItem("00444444444", "x@x.test"), batchItem("", "")}, []sinks.Outcome{rejected("no"), delivered()}},
		{"by e-mail, as which Fanbase knows another CPF", 200, batchReply(1, `{"success":true,"cpf":"99999999999","email":"ana@x.test"}`), three[:1], []sinks.Outcome{delivered()}},
		{"one e-mail, one answer for two without a CPF", 200, batchReply(1, `{"success":true,"email":"both@x.test"}`), []string{batchItem("", "both@x.test"), batchItem("", "both@x.test")}, []sinks.Outcome{delivered(), delivered()}},
		{"by e-mail", 200, batchReply(1, `{"success":true,"email":"eva@x.test"},{"success":true,"cpf":"11111111111"},{"success":false,"cpf":null,"email":" BIA@x.test","messageError":"no bia"}`), three, []sinks.Outcome{delivered(), failedBia, delivered()}},
		{"in order", 200, batchReply(1, `{"success":true},{"success":false,"messageError":"no bia"},{"success":true}`), three, []sinks.Outcome{delivered(), failedBia, delivered()}},
		{"the one that is left", 200, batchReply(1, `{"success":false,"messageError":"no bia"},{"success":true,"cpf":"11111111111"},{"success":true,"cpf":"03333333333"}`), three, []sinks.Outcome{delivered(), failedBia, delivered()}},
		{"no order when the counts differ", 200, batchReply(1, `{"success":true},{"success":true}`), three, []sinks.Outcome{lacks, lacks, lacks}},
		{"another fan's result", 200, batchReply(1, `{"success":true,"cpf":"11111111111"},{"success":true,"cpf":"99999999999"},{"success":true,"cpf":"03333333333"}`), three, []sinks.Outcome{delivered(), lacks, delivered()}},
		{"missing", 200, batchReply(1, `{"success":true,"cpf":"11111111111"},{"success":true,"cpf":"03333333333"}`), three, []sinks.Outcome{delivered(), lacks, delivered()}},
		{"a CPF twice", 200, batchReply(1, `{"success":false,"cpf":"11111111111","messageError":"first"},{"success":true,"cpf":"11111111111"}`), []string{three[0], three[0]}, []sinks.Outcome{rejected("first"), delivered()}},
		{"a CPF twice with one answer", 200, batchReply(1, `{"success":true,"cpf":"11111111111"}`), []string{three[0], three[0]}, []sinks.Outcome{delivered(), delivered()}},
		{"one e-mail of two fans", 200, batchReply(1, `{"success":false,"cpf":"22222222222","email":"both@x.test","messageError":"no bia"}`), []string{batchItem(ana, "both@x.test"), batchItem(bia, "both@x.test")}, []sinks.Outcome{lacks, failedBia}},
		{"one e-mail of two fans, of whom one is answered twice", 200, batchReply(1, `{"success":true,"cpf":"22222222222","email":"both@x.test"},{"success":true,"cpf":"22222222222","email":"both@x.test"}`), []string{batchItem(ana, "both@x.test"), batchItem(bia, "both@x.test")}, []sinks.Outcome{lacks, delivered()}},
		{"account failed", 200, batchReply(1, `{"success":true,"cpf":"11111111111","account":{"success":false,"login":"1","messageError":"login taken"}}`), three[:1], []sinks.Outcome{{Status: sinks.Delivered, Account: "login taken"}}},
		{"success without a fan", 200, batchReply(1, `{"userId":0,"success":true,"cpf":"11111111111"}`), three[:1], []sinks.Outcome{rejected("the vendor says that the fan succeeded, and gives the userId 0 of one that was not created")}},
		{"account made", 200, batchReply(1, `{"success":true,"cpf":"11111111111","account":{"success":true}}`), three[:1], []sinks.Outcome{delivered()}},
		{"no word of success", 200, batchReply(1, `{"cpf":"11111111111"}`), three[:1], []sinks.Outcome{rejected("the vendor gives no reason")}},
		{"all failed, and the header too", 200, batchReply(2, `{"success":false,"cpf":"11111111111","messageError":"a"},{"success":false,"cpf":"22222222222","messageError":"no bia"}`), three[:2], []sinks.Outcome{rejected("a"), failedBia}},
		{"items of a 400", 400, batchReply(1, `{"success":true,"cpf":"11111111111"},{"success":false,"cpf":"22222222222","messageError":"no bia"}`), three[:2], []sinks.Outcome{delivered(), failedBia}},
		{"items of a 409", 409, batchReply(0, `{"success":false,"cpf":"22222222222","messageError":"no bia"}`), three[1:2], []sinks.Outcome{failedBia}},
		{"item without numbers", 200, batchReply(1, `{"success":true}`), []string{`{"data":{}}`}, []sinks.Outcome{delivered()}},
	} {
		t.Run(test.name, func(t *testing.T) {
			outcomes, sent, err := deliver(t, sinks.TypeFanbaseBatch, sinks.Config{SystemID: 42}, test.status, test.reply, test.items...)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, outcomes); diff != "" {
				t.Error(diff)
			}
			compact(t, sent)
		})
	}
}

func TestFanbaseBatchFailures(t *testing.T) {
	item := batchItem("11111111111", "ana@x.test")
	for _, test := range []struct {
		name   string
		status int
		reply  string
		want   want
	}{
		{"codigo without items", 200, batchReply(7, ""), want{sinks.ClassBadRequest, 200, 0, "Msg"}},
		{"codigo against an item", 200, batchReply(7, `{"success":true,"cpf":"11111111111"}`), want{sinks.ClassBadRequest, 200, 0, "Msg"}},
		{"success without items", 200, batchReply(1, ""), want{sinks.ClassEndpoint, 200, 0, "has no results"}},
		{"something else", 200, `{"ok":true}`, want{sinks.ClassEndpoint, 200, 0, "has no results"}},
		{"codigo of a 400", 400, batchReply(7, ""), want{sinks.ClassBadRequest, 400, 0, "Msg"}},
		{"items of a 500", 500, batchReply(1, `{"success":true,"cpf":"11111111111"}`), want{sinks.ClassTransient, 500, 0, "Msg"}},
		{"items of a 403", 403, batchReply(1, `{"success":true,"cpf":"11111111111"}`), want{sinks.ClassUnauthorized, 403, 0, "Msg"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			outcomes, _, err := deliver(t, sinks.TypeFanbaseBatch, sinks.Config{}, test.status, test.reply, item)
			if outcomes != nil {
				t.Errorf("outcomes %+v", outcomes)
			}
			checkError(t, err, test.want)
		})
	}
}

func approval(account int, tiers string) string {
	return fmt.Sprintf(`{"account_tenant_fanid":"%s","invite_approval_map":{%s}}`, uuid(account), tiers)
}

func TestFanaticsOutcomes(t *testing.T) {
	a, b := approval(1, `"t1":true`), approval(2, `"t1":false`)
	ok := func(n int) string {
		return fmt.Sprintf(`{"account_tenant_fanid":"%s","result":"ok","details":"success"}`, uuid(n))
	}
	nok := func(n int) string {
		return fmt.Sprintf(`{"account_tenant_fanid":"%s","result":"nok","details":"Invalid account_tenant_fanid"}`, uuid(n))
	}
	invalid := sinks.Outcome{Status: sinks.Rejected, Reason: "Invalid account_tenant_fanid", Code: "nok"}
	shared := invalid
	shared.Shared = true
	lacks := rejected("the answer lacks the account")
	for _, test := range []struct {
		name, reply string
		items       []string
		sent        string
		want        []sinks.Outcome
	}{
		{"out of order", `{"accounts":[` + nok(2) + `,` + ok(1) + `]}`, []string{a, b}, `{"accounts":[` + a + `,` + b + `]}`, []sinks.Outcome{delivered(), invalid}},
		{"missing", `{"accounts":[` + ok(2) + `]}`, []string{a, b}, `{"accounts":[` + a + `,` + b + `]}`, []sinks.Outcome{lacks, delivered()}},
		{"unknown word", `{"accounts":[{"account_tenant_fanid":"` + uuid(1) + `","result":"maybe"}]}`, []string{a}, `{"accounts":[` + a + `]}`, []sinks.Outcome{{Status: sinks.Rejected, Reason: "the vendor says maybe", Code: "maybe"}}},
		{"two results", `{"accounts":[` + nok(1) + `,` + ok(1) + `]}`, []string{a}, `{"accounts":[` + a + `]}`, []sinks.Outcome{invalid}},
		{
			"one account three times", `{"accounts":[` + ok(1) + `,` + ok(2) + `]}`,
			[]string{a, b, approval(1, `"t2":true,"T1":false`), approval(1, `"t2":false`)},
			`{"accounts":[` + approval(1, `"t1":false,"t2":false`) + `,` + b + `]}`,
			[]sinks.Outcome{delivered(), delivered(), delivered(), delivered()},
		},
		{
			"one account twice, refused", `{"accounts":[` + nok(1) + `,` + nok(2) + `]}`,
			[]string{a, b, approval(1, `"t2":true`)},
			`{"accounts":[` + approval(1, `"t1":true,"t2":true`) + `,` + b + `]}`,
			[]sinks.Outcome{shared, invalid, shared},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			outcomes, sent, err := deliver(t, sinks.TypeFanatics, sinks.Config{}, 201, test.reply, test.items...)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, outcomes); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(test.sent, sent); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestFanaticsFailures(t *testing.T) {
	wrapper := `{"errors":[{"code":4711,"message":"bad payload"},{"code":"E2","message":"worse"}],"rc":"R1","timestamp":"2025-08-06T18:30:00.000Z"}`
	for _, status := range []int{201, 400} {
		_, _, err := deliver(t, sinks.TypeFanatics, sinks.Config{}, status, wrapper, approval(1, `"t":true`))
		checkError(t, err, want{sinks.ClassBadRequest, status, 0, "bad payload; worse"})
		text := fmt.Sprintf("status %d %s: bad payload worse (code 4711; E2) (rc R1 at 2025-08-06T18:30:00.000Z)", status, http.StatusText(status))
		if err.Error() != text {
			t.Errorf("got  %s\nwant %s", err, text)
		}
	}
	_, _, err := deliver(t, sinks.TypeFanatics, sinks.Config{}, 201, `{}`, approval(1, `"t":true`))
	checkError(t, err, want{sinks.ClassEndpoint, 201, 0, "has no results"})
	_, sent, err := deliver(t, sinks.TypeFanatics, sinks.Config{}, 201, `{}`, `{"account_tenant_fanid":7}`)
	checkError(t, err, want400("the item is not"))
	many := make([]string, 201)
	for i := range many {
		many[i] = approval(i, `"t":true`)
	}
	_, sent2, err := deliver(t, sinks.TypeFanatics, sinks.Config{}, 201, `{}`, many...)
	checkError(t, err, want{class: sinks.ClassTooLarge, reason: "200 accounts"})
	if sent+sent2 != "" {
		t.Error("sent what cannot be right")
	}
}

func TestFanaticsCovers(t *testing.T) {
	sink := kinds[sinks.TypeFanatics].openWith(t, sinks.TypeFanatics, sinks.Deps{Tokens: sinks.NewTokens("1", nil, nil)})
	defer sink.Close()
	partial := sink.(interface {
		Covers(newer, older []byte) bool
	})
	for _, c := range []struct {
		newer, older string
		want         bool
	}{
		{approval(1, `"A":true`), approval(1, `"a":false`), true},
		{approval(1, `"a":true,"b":true`), approval(1, `"b":false`), true},
		{approval(1, `"a":true`), approval(1, `"b":true`), false},
		{approval(1, `"a":true`), approval(1, `"a":true,"b":true`), false},
		{approval(1, `"a":true`), approval(2, `"a":true`), false},
		{`{}`, `{}`, false},
	} {
		if got := partial.Covers([]byte(c.newer), []byte(c.older)); got != c.want {
			t.Errorf("%s covers %s: %v", c.newer, c.older, got)
		}
	}
}

func TestFanaticsMerge(t *testing.T) {
	sink := kinds[sinks.TypeFanatics].openWith(t, sinks.TypeFanatics, sinks.Deps{Tokens: sinks.NewTokens("1", nil, nil)})
	defer sink.Close()
	merger := sink.(interface {
		Merge(dst, older, newer []byte) ([]byte, error)
	})
	older, newer := approval(1, `"A":true,"b":true`), `{"invite_approval_map": {"c":false, "a":false}, "account_tenant_fanid":"AAAAAAAA-bbbb-cccc-dddd-000000000001"}`
	got, err := merger.Merge([]byte("x"), []byte(older), []byte(newer))
	if want := "x" + approval(1, `"a":false,"b":true,"c":false`); err != nil || string(got) != want {
		t.Errorf("%s, %v\nwant %s", got, err, want)
	}
	for _, other := range []string{approval(2, `"a":true`), approval(1, `"a":1`), `{"account_tenant_fanid":"` + uuid(1) + `"}`, ``, `[]`} {
		if _, err := merger.Merge(nil, []byte(older), []byte(other)); err == nil {
			t.Errorf("merged with %s", other)
		}
	}
}

func TestFanbaseQueueOutcomes(t *testing.T) {
	tracked := sinks.Outcome{Status: sinks.Accepted, Tracking: "u/1"}
	for _, test := range []struct {
		name, reply string
		confirm     sinks.Confirm
		want        sinks.Outcome
	}{
		{"queued", `{"id":"u/1","iCode":0,"processStatus":"pending"}`, sinks.ConfirmProcessed, tracked},
		{"queued, by default", `{"id":"u/1","iCode":0}`, 0, tracked},
		{"queued is enough", `{"id":"u/1","iCode":0,"processStatus":"pending"}`, sinks.ConfirmAccepted, delivered()},
		{"processed at once", `{"id":"u/1","iCode":0,"processStatus":"completed"}`, sinks.ConfirmProcessed, delivered()},
		{"failed at once", `{"id":"u/1","iCode":0,"iMsg":"created","processStatus":"failed","processMsg":"no fan"}`, sinks.ConfirmAccepted, sinks.Outcome{Status: sinks.Rejected, Reason: "no fan", Code: "0"}},
		{"another code", `{"id":"u/1","iCode":"12","iMsg":"not today"}`, sinks.ConfirmAccepted, sinks.Outcome{Status: sinks.Rejected, Reason: "not today", Code: "12"}},
		{"no id", `{"iCode":0}`, sinks.ConfirmProcessed, sinks.Outcome{Status: sinks.Delivered, Remark: "queued without an id: whether it was processed cannot be asked"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			outcomes, sent, err := deliver(t, sinks.TypeFanbaseQueue, sinks.Config{Confirm: test.confirm}, 201, test.reply, `{"id":"7"}`)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]sinks.Outcome{test.want}, outcomes); diff != "" {
				t.Error(diff)
			}
			if sent != `{"action":"update_fandata","data":{"id":"7"}}` {
				t.Error(sent)
			}
		})
	}
	_, _, err := deliver(t, sinks.TypeFanbaseQueue, sinks.Config{}, 201, `{}`, `{"id":"7"}`)
	checkError(t, err, want{sinks.ClassEndpoint, 201, 0, "has no id of a queued object"})
	_, sent, err := deliver(t, sinks.TypeFanbaseQueue, sinks.Config{}, 201, `{}`, `{"id":"7"}`, `{"id":"8"}`)
	checkError(t, err, want{class: sinks.ClassTooLarge, reason: "one item"})
	if sent != "" {
		t.Error("sent two items")
	}
}

func TestFanbaseQueueConfirm(t *testing.T) {
	for _, test := range []struct {
		name   string
		status int
		reply  string
		want   sinks.Outcome
		err    want
	}{
		{name: "completed", status: 200, reply: `{"id":"u/1","iCode":0,"processStatus":"completed"}`, want: delivered()},
		{name: "completed with a code", status: 200, reply: `{"iCode":3,"iMsg":"no","processStatus":"completed"}`, want: sinks.Outcome{Status: sinks.Rejected, Reason: "no", Code: "3"}},
		{name: "failed", status: 200, reply: `{"iCode":0,"processStatus":"failed","processMsg":"no fan"}`, want: sinks.Outcome{Status: sinks.Rejected, Reason: "no fan", Code: "0"}},
		{name: "pending", status: 200, reply: `{"iCode":0,"processStatus":"pending"}`, want: sinks.Outcome{Status: sinks.Retry, Reason: "the queue says pending"}},
		{name: "processing", status: 200, reply: `{"processStatus":"processing"}`, want: sinks.Outcome{Status: sinks.Retry, Reason: "the queue says processing"}},
		{name: "unknown word", status: 200, reply: `{"processStatus":"resting"}`, want: sinks.Outcome{Status: sinks.Retry, Reason: "the queue says resting"}},
		{name: "another letter case", status: 200, reply: `{"iCode":0,"processStatus":" Completed"}`, want: delivered()},
		{name: "upper case", status: 200, reply: `{"iCode":0,"processStatus":"FAILED","processMsg":"no fan"}`, want: sinks.Outcome{Status: sinks.Rejected, Reason: "no fan", Code: "0"}},
		{name: "no status", status: 200, reply: `{"id":"u/1","iCode":0}`, err: want{sinks.ClassEndpoint, 200, 0, "has no processStatus"}},
		{name: "another object", status: 200, reply: `{"id":"u/2","iCode":0,"processStatus":"completed"}`, err: want{sinks.ClassEndpoint, 200, 0, "is about another object"}},
		{name: "no such path", status: 404, reply: `nothing here`, err: want{sinks.ClassEndpoint, 404, 0, "nothing here"}},
		{name: "page", status: 404, reply: `<html></html>`, err: want{sinks.ClassEndpoint, 404, 0, "is a page of HTML"}},
		{name: "unknown id", status: 404, reply: `{"header":{"codigo":0}}`, want: sinks.Outcome{Status: sinks.Retry, Reason: "the queue does not know the id"}},
		{name: "no JSON", status: 200, reply: `hello`, err: want{sinks.ClassEndpoint, 200, 0, "is not JSON"}},
		{name: "500", status: 500, reply: ``, err: want{sinks.ClassTransient, 500, 0, ""}},
		{name: "401", status: 401, reply: ``, err: want{sinks.ClassUnauthorized, 401, 0, ""}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := newVendor(t)
				v.answer = say(test.status, test.reply)
				sink := kinds[sinks.TypeFanbaseQueue].open(t, sinks.TypeFanbaseQueue, v).(interface {
					Confirm(ctx context.Context, tracking string) (sinks.Outcome, error)
				})
				got, err := sink.Confirm(t.Context(), "u/1")
				if test.err.class != 0 {
					checkError(t, err, test.err)
				} else if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(test.want, got); diff != "" {
					t.Error(diff)
				}
				if r := v.requests[0]; r.Method != http.MethodGet || r.RequestURI != "/api/v1/integration/queue/u%2F1" {
					t.Errorf("%s %s", r.Method, r.RequestURI)
				}
			})
		})
	}
}
