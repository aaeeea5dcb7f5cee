package config

import "testing"

func TestURLHoldsThePath(t *testing.T) {
	for _, test := range []struct {
		typ           SinkType
		address, want string
	}{
		{StopChurn, "https://crm.test", ""},
		{StopChurn, "https://crm.test/", ""},
		{StopChurn, "https://crm.test/gateway", ""},
		{StopChurn, "https://crm.test/my-client-data", ""},
		{StopChurn, "https://crm.test/client-data/update", "/client-data/update"},
		{StopChurn, "https://crm.test/client-data/update/", "/client-data/update"},
		{StopChurn, "https://crm.test/x/Client-Data", "/client-data"},
		{FanbaseQueue, "https://connect.test/api/v1/integration/queue", "/api/v1/integration/queue"},
		{FanbaseBatch, "https://connect.test/api/v2/if_id_batch?x=1", "/api/v2/IF_ID_Batch"},
		{FanbaseBatch, "https://connect.test/api", "/api"},
		{FanbaseBatch, "https://connect.test/api/v1", ""},
		{FanaticsApprovals, "https://fans.test/v2", "/v2"},
		{FanaticsApprovals, "https://fans.test/v2/tier-points/accounts", "/v2/tier-points/accounts"},
		{"kafka", "https://fans.test/v2", ""},
	} {
		if got := overlap(test.address, EndpointPath(test.typ)); got != test.want {
			t.Errorf("%s %s: got %q, want %q", test.typ, test.address, got, test.want)
		}
	}
}
