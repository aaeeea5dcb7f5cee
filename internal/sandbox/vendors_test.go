package sandbox

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The vendors' own examples, as their pages print them.
const (
	stopchurnExample = `{"data": [
	{"type": "insert", "data": {"brandId": 1, "tableName": "user",
		"data": {"id": "1", "email": "test123@gmail.com", "firstName": "pera", "lastName": "peric", "nickname": "perke", "status": "active"},
		"createdAt": 1694357675000, "updatedAt": 1694357675000}},
	{"type": "update", "data": {"brandId": 1, "tableName": "user",
		"data": {"id": "2", "email": "test456@gmail.com", "firstName": "mika", "lastName": "mikic", "nickname": "mikica", "status": "active"},
		"createdAt": 1694357675000, "updatedAt": 1694357675000}}]}`

	simpleFan = `{"data": {"identity": 0, "name1": "João da Silva", "gender": "M", "socialName": "João", "birthday": 15, "birthMonth": 8, "birthYear": 1990,
		"nationalityIso3": "BRA"},
	"numbers": [{"numberType": 1, "number": "12345678900", "verified": 1}, {"numberType": 4, "number": "joao@exemplo.com", "verified": 1}],
	"sysValues": [{"key": "CODIGO_SOCIO", "value": "SOC-123456"}],
	"addresses": {"addressType": 1, "add1": "Rua Exemplo", "add2": "Apto 101", "number": 123, "add3": "Centro", "zip": "01234567", "city": "São Paulo",
		"state": "SP", "iso3": "BRA"}}`

	memberFan = `{"data": {"identity": 0, "name1": "Maria Santos", "gender": "F", "birthday": 20, "birthMonth": 3, "birthYear": 1985, "nationalityIso3": "BRA"},
	"numbers": [{"numberType": 1, "number": "98765432100", "verified": 1}, {"numberType": 4, "number": "maria@exemplo.com", "verified": 1}],
	"addresses": {"addressType": 1, "add1": "Av. Principal", "number": 500, "add3": "Jardim América", "zip": "04567890", "city": "São Paulo", "state": "SP",
		"iso3": "BRA"},
	"memberships": [{"externalId": "CONTRATO-2025-001", "status": "Ativo", "data": "2025-01-15T10:00:00.000Z", "codigoCliente": "98765432100",
		"plano": "Plano Premium Anual", "planoCode": "PREMIUM-ANUAL", "parcelas": 12, "validade": "2026-01-15T10:00:00.000Z", "origem": "Website",
		"ativacao": "2025-01-15T10:00:00.000Z", "tipoVigencia": "Anual", "formaPagamento": "Cartão de Crédito"}],
	"optins": [{"optinCode": "NEWSLETTER", "optinDesc": "Aceito receber newsletters", "optinDate": "2025-01-15T10:00:00.000Z"},
		{"optinCode": "SMS", "optinDesc": "Aceito receber SMS promocionais", "optinDate": "2025-01-15T10:00:00.000Z"}],
	"pwd": "senha123"}`

	accountsExample = `{"accounts": [{"account_tenant_fanid": "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee",
		"invite_approval_map": {"12345678-1234-1234-dddd-eeeeeeeeeeee": true}}]}`
)

func batchOf(fans ...string) string {
	return `{"systemId": 0, "data": [` + strings.Join(fans, ",") + `]}`
}

func TestStopChurnExample(t *testing.T) {
	c := newClient(t, Config{})
	status, body := c.stopchurn(stopchurnExample)
	if diff := cmp.Diff(map[string]any{"statusCode": 200.0, "message": "Updates received"}, body); status != http.StatusOK || diff != "" {
		t.Errorf("%d %s", status, diff)
	}
	if got := c.Rows("user"); len(got) != 2 || got[0].ID != "1" || got[1].ID != "2" || got[0].Brand != "1" || got[0].CreatedAt != 1694357675000 {
		t.Errorf("rows %+v", got)
	}
	c.stopchurn(rows(row("delete", "user", `{"id":"1","email":null,"firstName":"","lastName":"","nickname":"","status":""}`)))
	if got := c.Rows("user"); len(got) != 1 || got[0].ID != "2" {
		t.Errorf("rows after the delete %+v", got)
	}
	for _, key := range []string{"", "Basic sandbox-key", "Bearer other", "sandbox-key"} {
		status, body := c.send(http.MethodPost, "/client-data/update", map[string]string{"Authorization": key}, stopchurnExample)
		want := map[string]any{"statusCode": 401.0, "message": "Invalid client api token", "error": "Unauthorized"}
		if diff := cmp.Diff(want, body); status != http.StatusUnauthorized || diff != "" {
			t.Errorf("key %q: %d %s", key, status, diff)
		}
	}
}

func TestStopChurnRefuses(t *testing.T) {
	good := row("insert", "user", `{"id":1,"a":2}`)
	for name, test := range map[string]struct{ body, reason string }{
		"no JSON":           {`{"data":`, "the body is not JSON"},
		"no object":         {`[]`, "the body is not an object"},
		"not UTF-8":         {"{\"data\":\"\xff\"}", "the body is not UTF-8"},
		"data missing":      {`{}`, "data is not an array"},
		"data no array":     {`{"data":{}}`, "data is not an array"},
		"data empty":        {`{"data":[]}`, "data is empty"},
		"further field":     {`{"data":[` + good + `],"x":1}`, "x is not a field"},
		"element no object": {rows(`1`), "data[0]. is not an object"},
		"no type":           {rows(strings.Replace(good, `"type":"insert",`, ``, 1)), "data[0].type is missing"},
		"unknown type":      {rows(row("upsert", "user", `{"id":1}`)), "data[0].type is none of insert, update, delete"},
		"upper case":        {rows(row("INSERT", "user", `{"id":1}`)), "data[0].type is none of"},
		"no brand":          {rows(good, strings.Replace(good, `"brandId":1,`, ``, 1)), "data[1].data.brandId is missing"},
		"brand text":        {rows(strings.Replace(good, `"brandId":1`, `"brandId":"1"`, 1)), "data[0].data.brandId is a string and not a number"},
		"table empty":       {rows(row("insert", "", `{"id":1}`)), "data[0].data.tableName is empty"},
		"table number":      {rows(strings.Replace(good, `"user"`, `7`, 1)), "data[0].data.tableName is a number"},
		"row missing":       {rows(strings.Replace(good, `"data":{"id":1,"a":2},`, ``, 1)), "data[0].data.data is missing"},
		"row no object":     {rows(row("insert", "user", `[1]`)), "data[0].data.data is an array and not an object"},
		"created missing":   {rows(strings.Replace(good, `"createdAt":1694357675000,`, ``, 1)), "data[0].data.createdAt is missing"},
		"created text":      {rows(strings.Replace(good, `1694357675000`, `"2023-09-10T00:00:00Z"`, 1)), "data[0].data.createdAt is a string and not a number"},
		"created null":      {rows(strings.Replace(good, `1694357675000`, `null`, 1)), "data[0].data.createdAt is null and not a number"},
		"created seconds":   {rows(strings.Replace(good, `1694357675000`, `1694357675`, 1)), "data[0].data.createdAt is not in milliseconds"},
		"created micro":     {rows(strings.Replace(good, `1694357675000`, `1694357675000000`, 1)), "data[0].data.createdAt is not in milliseconds"},
		"created fraction":  {rows(strings.Replace(good, `1694357675000`, `1694357675000.5`, 1)), "data[0].data.createdAt is not in milliseconds"},
		"updated missing":   {rows(strings.Replace(good, `,"updatedAt":1694357675000`, ``, 1)), "data[0].data.updatedAt is missing"},
		"envelope further":  {rows(strings.Replace(good, `"brandId"`, `"op":"i","brandId"`, 1)), "data[0].data.op is not a field"},
		"no id":             {rows(row("insert", "user", `{"a":2}`)), "data[0].data.data.id is missing"},
		"id null":           {rows(row("insert", "user", `{"id":null}`)), "data[0].data.data.id is null"},
		"id empty":          {rows(row("insert", "user", `{"id":""}`)), "data[0].data.data.id is blank"},
		"column twice":      {rows(row("insert", "user", `{"id":1,"a":1,"a":2}`)), "a is there twice"},
		"column missing":    {rows(good, row("delete", "user", `{"id":1}`)), "data[1].data.data lacks columns that earlier rows of table user had: a"},
		"column of before":  {rows(row("insert", "known", `{"id":1,"b":1}`)), "lacks columns that earlier rows of table known had: a, c"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newClient(t, Config{})
			c.stopchurn(rows(row("insert", "known", `{"id":1,"a":1,"c":1}`)))
			status, body := c.stopchurn(test.body)
			message, _ := body["message"].(string)
			if status != http.StatusBadRequest || body["error"] != "Bad Request" || body["statusCode"] != 400.0 ||
				!strings.HasPrefix(message, "Update reception failed: ") || !strings.Contains(message, test.reason) {
				t.Errorf("%d %v, want %q", status, body, test.reason)
			}
			if got := c.Rows("user"); len(got) != 0 {
				t.Errorf("a refused request left rows %+v", got)
			}
		})
	}
}

func TestStopChurnColumns(t *testing.T) {
	c := newClient(t, Config{})
	for _, data := range []string{`{"id":1,"a":1}`, `{"id":1,"a":1,"b":null}`} {
		if status, body := c.stopchurn(rows(row("insert", "user", data))); status != http.StatusOK {
			t.Errorf("%s: %d %v", data, status, body)
		}
	}
	if status, _ := c.stopchurn(rows(row("insert", "user", `{"id":1,"a":1}`))); status != http.StatusBadRequest {
		t.Errorf("without a column that was added: %d", status)
	}
	if status, _ := c.stopchurn(rows(row("insert", "order", `{"id":1}`))); status != http.StatusOK {
		t.Errorf("another table: %d", status)
	}
	loose := newClient(t, Config{StopChurnLooseColumns: true})
	loose.stopchurn(rows(row("insert", "user", `{"id":1,"a":1}`)))
	if status, _ := loose.stopchurn(rows(row("insert", "user", `{"id":1}`))); status != http.StatusOK {
		t.Errorf("loose: %d", status)
	}
}

func TestFanbaseToken(t *testing.T) {
	c := newClient(t, Config{TokenLife: time.Hour})
	status, body := c.send(http.MethodPost, "/api/token?grant_type=client_credentials&client_id=sandbox-client&client_secret=sandbox-secret", nil, "")
	if status != http.StatusOK || body["expires_in"] != 3600.0 || body["refresh_token"] == "" || !strings.Contains(body["scope"].(string), "fbserver") {
		t.Errorf("%d %v", status, body)
	}
	for query, want := range map[string]string{
		"": "400 The request is missing a parameter: (client_id, client_secret, grant_type, code)",
		"grant_type=client_credentials&client_id=sandbox-client":                         "400 The request is missing a parameter: (client_id, client_secret, grant_type, code)",
		"grant_type=client_credentials&client_id=x&client_secret=sandbox-secret":         "401 The informed Client ID is invalid.",
		"grant_type=client_credentials&client_id=sandbox-client&client_secret=x":         "401 The informed Client Secret does not match the correct secret.",
		"grant_type=authorization_code&client_id=sandbox-client&client_secret=whatever1": "400 The grant_type is not client_credentials",
	} {
		// The credentials in the body do not count.
		status, body := c.send(http.MethodPost, "/api/token?"+query, map[string]string{"Content-Type": "application/x-www-form-urlencoded"},
			"grant_type=client_credentials&client_id=sandbox-client&client_secret=sandbox-secret")
		if got := fmt.Sprint(status, " ", body["error_description"]); got != want {
			t.Errorf("%q: %s", query, got)
		}
	}
}

func TestFanbaseNeedsAToken(t *testing.T) {
	c := newClient(t, Config{})
	header := c.fanbaseHeader()
	token := header["AccessToken"]
	for name, wrong := range map[string]map[string]string{
		"none": {}, "with prefix": {"AccessToken": "Bearer " + token}, "as bearer": {"Authorization": "Bearer " + token}, "unknown": {"AccessToken": "x"},
	} {
		for path, method := range map[string]string{
			"/api/v2/IF_ID_Batch": http.MethodPost, "/api/v1/integration/queue": http.MethodPost, "/api/v1/integration/queue/x": http.MethodGet,
		} {
			if status, _ := c.send(method, path, wrong, "{}"); status != http.StatusUnauthorized {
				t.Errorf("%s, token %s: %d", path, name, status)
			}
		}
	}
	if status, _ := c.send(http.MethodGet, "/api/v1/integration/queue/x", header, ""); status != http.StatusNotFound {
		t.Errorf("with the token: %d", status)
	}
	c.fanbaseTokens.life = time.Nanosecond
	if status, _ := c.send(http.MethodGet, "/api/v1/integration/queue/x", c.fanbaseHeader(), ""); status != http.StatusUnauthorized {
		t.Errorf("expired: %d", status)
	}
}

func TestFanbaseQueue(t *testing.T) {
	c := newClient(t, Config{QueueDelay: time.Hour})
	header := c.fanbaseHeader()
	if _, err := c.AddFault(Fault{Kind: Reject, Endpoint: "fanbase_queue", Contains: "bad", Message: "fan not found"}); err != nil {
		t.Fatal(err)
	}
	enqueue := func(body string) (int, map[string]any) {
		return c.send(http.MethodPost, "/api/v1/integration/queue", header, body)
	}
	status, body := enqueue(`{"action":"update_fandata","data":{"cpf":"12345678900","id":"internal_feng_id"}}`)
	id, _ := body["id"].(string)
	created, _ := body["created"].(string)
	want := map[string]any{
		"id": id, "created": created, "iCode": 0.0, "iMsg": "Object created successfully", "processDate": nil, "processStatus": "pending", "processMsg": nil,
	}
	if diff := cmp.Diff(want, body); status != http.StatusCreated || diff != "" || !isUUID(id) {
		t.Errorf("%d %s", status, diff)
	}
	_, failing := enqueue(`{"action":"update_fandata","data":{"cpf":null,"id":"bad"}}`)

	show := func(id string, delay time.Duration) map[string]any {
		c.mu.Lock()
		c.config.QueueDelay = delay
		c.queue.objects[id].Created = time.Now().Add(-time.Minute)
		c.mu.Unlock()
		_, body := c.send(http.MethodGet, "/api/v1/integration/queue/"+id, header, "")
		return body
	}
	for delay, want := range map[time.Duration]string{
		time.Hour: "pending <nil> <nil>", 90 * time.Second: "processing <nil> <nil>", time.Second: "completed true Data updated successfully",
	} {
		body := show(id, delay)
		got := fmt.Sprint(body["processStatus"], " ", body["processDate"], " ", body["processMsg"])
		if body["processDate"] != nil {
			got = fmt.Sprint(body["processStatus"], " ", true, " ", body["processMsg"])
		}
		if got != want {
			t.Errorf("after %s of %s: %s", time.Minute, delay, got)
		}
	}
	if body := show(failing["id"].(string), time.Second); body["processStatus"] != "failed" || body["processMsg"] != "fan not found" {
		t.Errorf("failing: %v", body)
	}
	objects := c.Queue()
	if len(objects) != 2 || objects[0].DataID != "internal_feng_id" || *objects[0].CPF != "12345678900" || objects[1].CPF != nil || objects[1].Status != "failed" {
		t.Errorf("queue %+v", objects)
	}
	for body, want := range map[string]string{
		`{}`:                                                                  "body.action is missing; body.data is missing",
		`{"action":"other","data":{}}`:                                        "body.data.id is missing",
		`{"action":1,"data":[]}`:                                              "body.action is a number and not a string; body.data is an array and not an object",
		`{"action":"x","data":{"id":""},"y":1}`:                               "body.y is not a field",
		`{"action":"x","data":{"id":"1"}}`:                                    "must be",
		`{"action":"update_fandata","data":{"id":" "}}`:                       "body.data.id is empty",
		`{"action":"update_fandata","data":{"id":7}}`:                         "body.data.id is a number and not a string",
		`{"action":"update_fandata","data":{"id":null}}`:                      "body.data.id is null and not a string",
		`{"action":"update_fandata","data":{"id":"1","cpf":12345678900}}`:     "body.data.cpf is a number and not a string",
		`{"action":"update_fandata","data":{"id":"1","email":"a@b.example"}}`: "body.data.email is not a field",
		`[{"action":"update_fandata","data":{"id":"1"}}]`:                     "not an object",
	} {
		status, answer := enqueue(body)
		header, _ := answer["header"].(map[string]any)
		if message, _ := header["msg"].(string); status != http.StatusBadRequest || !strings.Contains(message, want) {
			t.Errorf("%s: %d %v", body, status, answer)
		}
	}
}

func TestFanbaseBatchExamples(t *testing.T) {
	c := newClient(t, Config{})
	status, body := c.batch(batchOf(simpleFan, memberFan))
	want := map[string]any{"header": map[string]any{"codigo": 1.0, "msg": "Ok"}, "data": map[string]any{
		"resume": map[string]any{"total": 2.0, "success": 2.0, "fail": 0.0, "status": "SUCCESS"},
		"items": []any{
			map[string]any{
				"userId": 6011883.0, "success": true, "cpf": "12345678900", "email": "joao@exemplo.com", "alternativeNumber": nil, "messageError": nil, "account": nil,
			},
			map[string]any{
				"userId": 6011884.0, "success": true, "cpf": "98765432100", "email": "maria@exemplo.com", "alternativeNumber": nil, "messageError": nil,
				"account": map[string]any{"success": true, "login": "98765432100", "messageError": nil},
			},
		},
	}}
	if diff := cmp.Diff(want, body); status != http.StatusOK || diff != "" {
		t.Errorf("%d %s", status, diff)
	}
	fans := c.Fans()
	if len(fans) != 2 || fans[0].Account || !fans[1].Account || fans[1].Parts["pwd"] != nil || fans[0].Parts["addresses"] == nil {
		t.Errorf("fans %+v", fans)
	}
}

// edit replaces text in the simple example; the test fails when the text is not there.
func edit(t *testing.T, old, new string) string {
	t.Helper()
	if !strings.Contains(simpleFan, old) {
		t.Fatalf("the example has no %s", old)
	}
	return strings.Replace(simpleFan, old, new, 1)
}

func TestFanbaseBatchRefusesShapes(t *testing.T) {
	c := newClient(t, Config{})
	with := func(part string) string { return strings.TrimSuffix(simpleFan, "}") + "," + part + "}" }
	for _, test := range []struct{ body, want string }{
		{`{"data":[` + simpleFan + `]}`, "body.systemId is missing"},
		{`{"systemId":"1","data":[` + simpleFan + `]}`, "body.systemId is a string and not a number"},
		{`{"systemId":1}`, "body.data is missing"},
		{`{"systemId":1,"data":{}}`, "body.data is an object and not an array"},
		{`{"systemId":1,"data":[]}`, "data is empty"},
		{`{"systemId":1,"data":[],"users":[]}`, "body.users is not a field"},
		{`[` + simpleFan + `]`, "the body is not an object"},
		{batchOf(`1`), "data[0] is a number and not an object"},
		{batchOf(`{}`), "data[0].data is missing"},
		{batchOf(edit(t, `"identity": 0, `, ``)), "data[0].data.identity is missing"},
		{batchOf(edit(t, `"identity": 0`, `"identity": "0"`)), "data[0].data.identity is a string and not a number"},
		{batchOf(edit(t, `"name1": "João da Silva", `, ``)), "data[0].data.name1 is missing"},
		{batchOf(edit(t, `"João da Silva"`, `null`)), "data[0].data.name1 is null and not a string"},
		{batchOf(edit(t, `"birthday": 15, `, ``)), "data[0].data.birthday is missing"},
		{batchOf(edit(t, `15`, `"15"`)), "data[0].data.birthday is a string and not a number"},
		{batchOf(edit(t, `"birthMonth": 8, `, ``)), "data[0].data.birthMonth is missing"},
		{batchOf(edit(t, `1990`, `null`)), "data[0].data.birthYear is null and not a number"},
		{batchOf(edit(t, `8,`, `08,`)), "the body is not JSON"},
		{batchOf(edit(t, `"socialName": "João"`, `"socialName": null`)), "data[0].data.socialName is null and not a string"},
		{batchOf(edit(t, `"gender"`, `"sex"`)), "data[0].data.sex is not a field"},
		{batchOf(edit(t, `"numberType": 1`, `"numberType": "1"`)), "data[0].numbers[0].numberType is a string and not a number"},
		{batchOf(edit(t, `"number": "12345678900"`, `"number": 12345678900`)), "data[0].numbers[0].number is a number and not a string"},
		{batchOf(edit(t, `"verified": 1`, `"verified": true`)), "data[0].numbers[0].verified is a boolean and not a number"},
		{batchOf(edit(t, `"value": "SOC-123456"`, `"value": 5`)), "data[0].sysValues[0].value is a number and not a string"},
		{batchOf(edit(t, `"number": 123`, `"number": "12A"`)), "data[0].addresses.number is a string and not a number"},
		{batchOf(edit(t, `, "zip": "01234567"`, ``)), "data[0].addresses.zip is missing"},
		{batchOf(strings.Replace(edit(t, `"addresses": {`, `"addresses": [{`), `"}}`, `"}]}`, 1)), "data[0].addresses is an array and not an object"},
		{batchOf(with(`"transactions":[{}]`)), "data[0].transactions[0].paymentMode is missing"},
		{batchOf(with(`"memberships":[{"externalId":1}]`)), "data[0].memberships[0].externalId is a number and not a string"},
		{batchOf(with(`"memberships":[{"guests":[{"age":1}]}]`)), "data[0].memberships[0].guests[0].age is not a field"},
		{batchOf(with(`"memberships":[{"attributes":[{"name":"x"}]}]`)), "data[0].memberships[0].attributes[0].type is missing"},
		{batchOf(with(`"optins":[{"optinCode":"A","optinDesc":"B"}]`)), "data[0].optins[0].optinDate is missing"},
		{batchOf(with(`"attributes":[{"key":"A"}]`)), "data[0].attributes[0].value is missing"},
		{batchOf(with(`"pwd":null`)), "data[0].pwd is null and not a string"},
		{batchOf(simpleFan, edit(t, `"identity": 0, `, ``)), "data[1].data.identity is missing"},
		{batchOf(with(`"sysValues":[]`)), "sysValues is there twice"},
	} {
		status, answer := c.batch(test.body)
		header, _ := answer["header"].(map[string]any)
		if message, _ := header["msg"].(string); status != http.StatusBadRequest || header["codigo"] == 1.0 || !strings.Contains(message, test.want) {
			t.Errorf("want %q: %d %v", test.want, status, answer)
		}
	}
	if len(c.Fans()) != 0 {
		t.Error("a refused request left fans")
	}
}

func TestFanbaseBatchFailsItems(t *testing.T) {
	with := func(part string) string { return strings.TrimSuffix(simpleFan, "}") + "," + part + "}" }
	transaction := `{"date":"2025-09-20T18:41:31.219Z","type":0,"productType":0,"productDesc":"","productExternalCode":"","qty":1,"value":9.5,"channel":"","externalCode":"","paymentMode":"Pix"}`
	if c := newClient(t, Config{}); true {
		if status, body := c.batch(batchOf(with(`"transactions":[` + transaction + `],"pwdhash":"x"`))); status != http.StatusOK || len(c.Fans()) != 1 {
			t.Fatalf("a good one: %d %v", status, body)
		}
	}
	for item, want := range map[string]string{
		edit(t, `"identity": 0`, `"identity": 1`):      "data[0].data.identity must be 0",
		edit(t, `"João da Silva"`, `" "`):              "data[0].data.name1 is empty",
		edit(t, `"M"`, `"X"`):                          `data[0].data.gender must be one of "M", "F", "O"`,
		edit(t, `15`, `32`):                            "data[0].data.birthday is more than 31",
		edit(t, `15`, `1.5`):                           "data[0].data.birthday is a number with a fraction",
		edit(t, `"birthMonth": 8`, `"birthMonth": 13`): "data[0].data.birthMonth is more than 12",
		edit(t, `1990`, `90`):                          "data[0].data.birthYear is less than 1000",
		strings.Replace(edit(t, `15`, `31`), `"birthMonth": 8`, `"birthMonth": 2`, 1):                   "has a birthday that its month does not have",
		edit(t, `"nationalityIso3": "BRA"`, `"nationalityIso3": "br"`):                                  "data[0].data.nationalityIso3 must be a country in three capitals",
		edit(t, `"numberType": 4`, `"numberType": 2`):                                                   "data[0].numbers[1].numberType must be one of 1, 3, 4",
		edit(t, `"verified": 1`, `"verified": 2`):                                                       "data[0].numbers[0].verified must be one of 0, 1",
		edit(t, `12345678900`, `123.456.789-00`):                                                        "must be 11 digits as a CPF",
		edit(t, `joao@exemplo.com`, `joao`):                                                             "is no e-mail",
		edit(t, `"numberType": 4, "number": "joao@exemplo.com"`, `"numberType": 3, "number": "(11) 9"`): "must be digits as a phone",
		edit(t, `[{"numberType": 1, "number": "12345678900", "verified": 1}, {"numberType": 4, "number": "joao@exemplo.com", "verified": 1}]`, `[]`): "must hold a CPF",
		edit(t, `"addressType": 1`, `"addressType": 3`):                                         "data[0].addresses.addressType must be one of 1, 2",
		edit(t, `"state": "SP"`, `"state": "São Paulo"`):                                        "data[0].addresses.state is longer than 2 characters",
		edit(t, `"iso3": "BRA"}`, `"iso3": "Brasil"}`):                                          "data[0].addresses.iso3 is longer than 3 characters",
		with(`"pwd":"a","pwdhash":"b"`):                                                         "has pwd and pwdhash, of which the vendor takes one only",
		with(`"transactions":[` + strings.Replace(transaction, `T18:41:31.219Z`, ``, 1) + `]`):  "data[0].transactions[0].date is not a time as ISO 8601 has it",
		with(`"optins":[{"optinCode":"A","optinDesc":"B","optinDate":"2025-02-30T00:00:00Z"}]`): "data[0].optins[0].optinDate is not",
	} {
		c := newClient(t, Config{})
		status, answer := c.batch(batchOf(item, memberFan))
		data, _ := answer["data"].(map[string]any)
		items, _ := data["items"].([]any)
		if status != http.StatusOK || len(items) != 2 {
			t.Errorf("want %q: %d %v", want, status, answer)
			continue
		}
		failed, _ := items[0].(map[string]any)
		message, _ := failed["messageError"].(string)
		if failed["success"] != false || failed["userId"] != 0.0 || !strings.Contains(message, want) {
			t.Errorf("want %q: %v", want, failed)
		}
		if diff := cmp.Diff(map[string]any{"total": 2.0, "success": 1.0, "fail": 1.0, "status": "PARTIAL_SUCCESS"}, data["resume"]); diff != "" {
			t.Error(diff)
		}
		yes := true
		if got := c.Received(Filter{Rejected: &yes}); len(got) != 1 || len(c.Fans()) != 1 {
			t.Errorf("%d refused items and %d fans", len(got), len(c.Fans()))
		}
	}
}

func TestFanbaseUpsert(t *testing.T) {
	c := newClient(t, Config{})
	fan := func(cpf, email, name string) string {
		var numbers []string
		if cpf != "" {
			numbers = append(numbers, `{"numberType":1,"number":"`+cpf+`"}`)
		}
		if email != "" {
			numbers = append(numbers, `{"numberType":4,"number":"`+email+`"}`)
		}
		return `{"data":{"identity":0,"name1":"` + name + `","birthday":1,"birthMonth":1,"birthYear":2000},"numbers":[` + strings.Join(numbers, ",") + `]}`
	}
	const first, second = "11111111111", "22222222222"
	c.batch(batchOf(fan("", "a@x.example", "by e-mail")))
	c.batch(batchOf(fan(first, "a@x.example", "CPF added")))
	c.batch(batchOf(fan(first, "b@x.example", "e-mail changed")))
	c.batch(batchOf(strings.Replace(fan(first, "", "by CPF"), `,"numbers"`, `,"sysValues":[{"key":"k","value":"v"}],"numbers"`, 1)))
	c.batch(batchOf(fan("", "b@x.example", "found by e-mail again")))
	c.batch(batchOf(fan(second, "b@x.example", "another one with the same e-mail")))
	fans := c.Fans()
	if len(fans) != 2 || fans[0].CPF != first || fans[0].Email != "b@x.example" || fans[0].UserID != 6011883 || fans[1].CPF != second {
		t.Fatalf("fans %+v", fans)
	}
	if !strings.Contains(string(fans[0].Parts["data"]), "found by e-mail again") || fans[0].Parts["sysValues"] == nil {
		t.Errorf("parts %s", encode(t, fans[0].Parts))
	}
}

func TestFanaticsToken(t *testing.T) {
	c := newClient(t, Config{TokenLife: 90 * time.Second})
	form := map[string]string{"Content-Type": "application/x-www-form-urlencoded"}
	send := func(header map[string]string, change func(url.Values)) (int, map[string]any) {
		values := url.Values{
			"grant_type": {"client_credentials"}, "client_id": {"sandbox-client"}, "client_secret": {"sandbox-secret"}, "scope": {"tier_points:override other:scope"},
		}
		change(values)
		return c.send(http.MethodPost, "/api/oauth2/token", header, values.Encode())
	}
	status, body := send(form, func(url.Values) {})
	if status != http.StatusOK || body["scope"] != "tier_points:override" || body["expires_in"] != 90.0 {
		t.Errorf("%d %v", status, body)
	}
	if status, body := send(form, func(v url.Values) { v.Del("scope") }); status != http.StatusOK || body["scope"] != "" {
		t.Errorf("without scope: %d %v", status, body)
	}
	for want, change := range map[string]func(url.Values){
		"400 invalid_request":        func(v url.Values) { v.Del("client_secret") },
		"400 unsupported_grant_type": func(v url.Values) { v.Set("grant_type", "password") },
		"401 invalid_client":         func(v url.Values) { v.Set("client_secret", "x") },
	} {
		status, body := send(form, change)
		if got := fmt.Sprint(status, " ", body["error"]); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	if status, _ := send(nil, func(url.Values) {}); status != http.StatusBadRequest {
		t.Errorf("not a form: %d", status)
	}
}

func TestFanaticsAccounts(t *testing.T) {
	c := newClient(t, Config{})
	status, body := c.accounts(accountsExample)
	want := map[string]any{"accounts": []any{map[string]any{"account_tenant_fanid": "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee", "result": "ok", "details": "success"}}}
	if diff := cmp.Diff(want, body); status != http.StatusCreated || diff != "" {
		t.Errorf("%d %s", status, diff)
	}
	const other = "12345678-1234-1234-DDDD-FFFFFFFFFFFF"
	c.accounts(`{"accounts":[{"account_tenant_fanid":"AAAAAAAA-BBBB-cccc-dddd-eeeeeeeeeeee","invite_approval_map":{"` + other + `":false}}]}`)
	approved := map[string]map[string]bool{"aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee": {"12345678-1234-1234-dddd-eeeeeeeeeeee": true, strings.ToLower(other): false}}
	if diff := cmp.Diff(approved, c.Approvals()); diff != "" {
		t.Error(diff)
	}
}

func TestFanaticsAuthorization(t *testing.T) {
	c := newClient(t, Config{FanaticsScopes: []string{"tier_points:read"}})
	for name, test := range map[string]struct {
		header map[string]string
		status int
	}{
		"none":    {nil, http.StatusUnauthorized},
		"unknown": {map[string]string{"Authorization": "Bearer x"}, http.StatusUnauthorized},
		"scope":   {c.fanaticsHeader(scopeOverride), http.StatusForbidden},
	} {
		status, body := c.send(http.MethodPost, "/v2/tier-points/accounts", test.header, accountsExample)
		errors, _ := body["errors"].([]any)
		timestamp, _ := body["timestamp"].(string)
		_, err := time.Parse("2006-01-02T15:04:05.000Z", timestamp)
		if status != test.status || len(errors) != 1 || body["rc"] == "" || err != nil {
			t.Errorf("%s: %d %v", name, status, body)
		}
	}
}

func TestFanaticsRefuses(t *testing.T) {
	c := newClient(t, Config{})
	const tier = `{"12345678-1234-1234-dddd-eeeeeeeeeeee":true}`
	entry := func(id, flags string) string {
		return `{"account_tenant_fanid":` + id + `,"invite_approval_map":` + flags + `}`
	}
	accounts := func(entries ...string) string { return `{"accounts":[` + strings.Join(entries, ",") + `]}` }
	many := make([]string, maxAccounts+1)
	for i := range many {
		many[i] = entry(fmt.Sprintf(`"aaaaaaaa-bbbb-cccc-dddd-%012d"`, i), tier)
	}
	if status, body := c.accounts(accounts(many[:maxAccounts]...)); status != http.StatusCreated {
		t.Errorf("200 accounts: %d %v", status, body)
	}
	for body, want := range map[string]string{
		accounts(many...):                        "accounts has 201 entries",
		accounts():                               "accounts is empty",
		`{}`:                                     "body.accounts is missing",
		`{"accounts":{}}`:                        "body.accounts is an object and not an array",
		accounts(`{"account_tenant_fanid":"x"}`): "body.accounts[0].invite_approval_map is missing",
		accounts(entry(`7`, tier)):               "body.accounts[0].account_tenant_fanid is a number and not a string",
		accounts(entry(`"x"`, `[]`)):             "body.accounts[0].invite_approval_map is an array and not an object",
		accounts(entry(`"x"`, `{}`)):             "accounts[0].invite_approval_map is empty",
		accounts(entry(`"x"`, `{"a":"true"}`)):   "a string and not a boolean",
		accounts(entry(`"x"`, `{"a":null}`)):     "null and not a boolean",
		accounts(entry(`"x"`, tier+`,"tier":1`)): "body.accounts[0].tier is not a field",
		accounts(many[0], strings.Replace(many[0], "aaaa", "AAAA", 1)): "accounts[1].account_tenant_fanid is in the request twice",
	} {
		status, answer := c.accounts(body)
		errors, _ := answer["errors"].([]any)
		if status != http.StatusBadRequest || len(errors) != 1 || !strings.Contains(fmt.Sprint(errors[0]), want) {
			t.Errorf("want %q: %d %v", want, status, answer)
		}
	}

	known := newClient(t, Config{FanaticsInviteOnly: []string{"12345678-1234-1234-DDDD-eeeeeeeeeeee"}})
	_, answer := known.accounts(accounts(
		entry(`"not-a-uuid"`, tier), entry(`"aaaaaaaa-bbbb-cccc-dddd-000000000001"`, `{"x":true}`),
		entry(`"aaaaaaaa-bbbb-cccc-dddd-000000000002"`, `{"6e91f32c-72a8-4a4d-b24b-757b10d446e0":true}`), many[3],
	))
	var got []string
	for _, result := range answer["accounts"].([]any) {
		r := result.(map[string]any)
		got = append(got, fmt.Sprint(r["result"], ": ", r["details"]))
	}
	if diff := cmp.Diff([]string{"nok: Invalid account_tenant_fanid", "nok: Invalid tier id", "nok: Tier is not invite-only", "ok: success"}, got); diff != "" {
		t.Error(diff)
	}
	if len(known.Approvals()) != 1 {
		t.Errorf("approvals %v", known.Approvals())
	}
}

func TestTransportRules(t *testing.T) {
	c := newClient(t, Config{MaxBody: 1000})
	key := func(extra map[string]string) map[string]string {
		extra["Authorization"] = "Bearer sandbox-key"
		return extra
	}
	for name, test := range map[string]struct {
		header map[string]string
		body   string
		status int
	}{
		"too large": {key(map[string]string{}), strings.Repeat(" ", 1001), http.StatusRequestEntityTooLarge},
		"gzip":      {key(map[string]string{"Content-Encoding": "gzip"}), "{}", http.StatusUnsupportedMediaType},
		"text":      {key(map[string]string{"Content-Type": "text/plain"}), stopchurnExample, http.StatusBadRequest},
		"charset":   {key(map[string]string{"Content-Type": "application/json; charset=utf-8"}), rows(row("insert", "user", `{"id":1}`)), http.StatusOK},
	} {
		if status, body := c.send(http.MethodPost, "/client-data/update", test.header, test.body); status != test.status {
			t.Errorf("%s: %d %v", name, status, body)
		}
	}
	response, err := c.try(http.MethodPut, "/client-data/update", nil, "")
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("PUT: %d", response.StatusCode)
	}
}
