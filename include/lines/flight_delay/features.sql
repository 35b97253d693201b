-- The features of the flight delay line: one portable text for DuckDB, Spark and Trino (no engine's own functions).
--
-- In:  flights, weather   accepted raw rows of the wanted days and of the day before each
--      calendar           the days to build: partition_date, previous_date, day_of_week (1 Monday to 7 Sunday)
-- Out: one row a flight of a wanted day, with its features as of its own prediction time, two hours before its
--      scheduled departure.
--
-- Time is honest by construction. What happens to a flight is a *fact* with the instant from which it is known:
--   judged    15 minutes after schedule at the latest it is plain whether a flight left late (a cancelled one did)
--   departed  its delay on departure
--   arrived   its delay on arrival
-- Facts and questions (one a flight, at its prediction time) lie on one time line, and every window ends at the
-- question: what was not yet known lies after it. A flight's facts inform its own date and the next, whatever else is
-- loaded, so that a day built alone and a day built in bulk are identical.
--
-- Names end in their window: _1h, _3h ... hours before the prediction time; _recent since the start of the day before.
-- Shares are of flights, delays in minutes, weather in the units of the source (F, mph, inches, millibars, miles).
WITH
questions AS (
    SELECT
        f.flight_date,
        c.day_of_week,
        f.carrier,
        f.flight,
        f.origin,
        f.dest,
        f.scheduled_departure,
        f.scheduled_departure - INTERVAL '2' HOUR AS prediction_time
    FROM flights AS f
    INNER JOIN calendar AS c ON c.partition_date = f.flight_date
),
informing AS (
    SELECT c.partition_date AS for_date, f.*
    FROM flights AS f
    INNER JOIN calendar AS c ON c.partition_date = f.flight_date
    UNION ALL
    SELECT c.partition_date AS for_date, f.*
    FROM flights AS f
    INNER JOIN calendar AS c ON c.previous_date = f.flight_date
),
timeline AS (
    SELECT
        flight_date AS for_date, carrier, origin, dest, prediction_time AS instant, flight, scheduled_departure,
        0 AS judged, 0 AS judged_late,
        0 AS departed, CAST(0 AS DOUBLE) AS dep_delay,
        0 AS arrived, CAST(0 AS DOUBLE) AS arr_delay, 0 AS arrived_late
    FROM questions
    UNION ALL
    SELECT
        for_date, carrier, origin, dest,
        CASE
            WHEN departure < scheduled_departure + INTERVAL '15' MINUTE THEN departure
            ELSE scheduled_departure + INTERVAL '15' MINUTE
        END,
        NULL, NULL,
        1, CASE WHEN departure <= scheduled_departure + INTERVAL '15' MINUTE THEN 0 ELSE 1 END,
        0, 0, 0, 0, 0
    FROM informing
    UNION ALL
    SELECT
        for_date, carrier, origin, dest, departure, NULL, NULL,
        0, 0, 1, dep_delay, 0, 0, 0
    FROM informing
    WHERE departure IS NOT NULL
    UNION ALL
    SELECT
        for_date, carrier, origin, dest, arrival, NULL, NULL,
        0, 0, 0, 0, 1, arr_delay, CASE WHEN arr_delay > 15 THEN 1 ELSE 0 END
    FROM informing
    WHERE arrival IS NOT NULL AND arr_delay IS NOT NULL
),
known AS (
    SELECT
        for_date, carrier, origin, flight, scheduled_departure,
        SUM(judged_late) OVER origin_1h
            / CAST(NULLIF(SUM(judged) OVER origin_1h, 0) AS DOUBLE) AS origin_late_1h,
        SUM(judged_late) OVER origin_3h
            / CAST(NULLIF(SUM(judged) OVER origin_3h, 0) AS DOUBLE) AS origin_late_3h,
        SUM(dep_delay) OVER origin_3h
            / CAST(NULLIF(SUM(departed) OVER origin_3h, 0) AS DOUBLE) AS origin_dep_delay_3h,
        SUM(arr_delay) OVER origin_3h
            / CAST(NULLIF(SUM(arrived) OVER origin_3h, 0) AS DOUBLE) AS origin_arr_delay_3h,
        SUM(judged_late) OVER network_1h
            / CAST(NULLIF(SUM(judged) OVER network_1h, 0) AS DOUBLE) AS network_late_1h,
        SUM(judged_late) OVER network_3h
            / CAST(NULLIF(SUM(judged) OVER network_3h, 0) AS DOUBLE) AS network_late_3h,
        SUM(dep_delay) OVER network_3h
            / CAST(NULLIF(SUM(departed) OVER network_3h, 0) AS DOUBLE) AS network_dep_delay_3h,
        SUM(arr_delay) OVER network_3h
            / CAST(NULLIF(SUM(arrived) OVER network_3h, 0) AS DOUBLE) AS network_arr_delay_3h,
        SUM(judged_late) OVER origin_carrier_4h
            / CAST(NULLIF(SUM(judged) OVER origin_carrier_4h, 0) AS DOUBLE) AS origin_carrier_late_4h,
        SUM(dep_delay) OVER origin_carrier_4h
            / CAST(NULLIF(SUM(departed) OVER origin_carrier_4h, 0) AS DOUBLE) AS origin_carrier_dep_delay_4h,
        SUM(judged_late) OVER carrier_4h
            / CAST(NULLIF(SUM(judged) OVER carrier_4h, 0) AS DOUBLE) AS carrier_late_4h,
        SUM(judged_late) OVER dest_8h
            / CAST(NULLIF(SUM(judged) OVER dest_8h, 0) AS DOUBLE) AS dest_late_8h,
        SUM(dep_delay) OVER dest_8h
            / CAST(NULLIF(SUM(departed) OVER dest_8h, 0) AS DOUBLE) AS dest_dep_delay_8h,
        SUM(arr_delay) OVER dest_8h
            / CAST(NULLIF(SUM(arrived) OVER dest_8h, 0) AS DOUBLE) AS dest_arr_delay_8h,
        SUM(arrived_late) OVER network_recent
            / CAST(NULLIF(SUM(arrived) OVER network_recent, 0) AS DOUBLE) AS network_late_recent,
        SUM(arrived_late) OVER origin_recent
            / CAST(NULLIF(SUM(arrived) OVER origin_recent, 0) AS DOUBLE) AS origin_late_recent,
        SUM(arrived_late) OVER carrier_recent
            / CAST(NULLIF(SUM(arrived) OVER carrier_recent, 0) AS DOUBLE) AS carrier_late_recent,
        SUM(arrived_late) OVER origin_carrier_recent
            / CAST(NULLIF(SUM(arrived) OVER origin_carrier_recent, 0) AS DOUBLE) AS origin_carrier_late_recent,
        SUM(arrived_late) OVER dest_recent
            / CAST(NULLIF(SUM(arrived) OVER dest_recent, 0) AS DOUBLE) AS dest_late_recent,
        SUM(judged - departed) OVER origin_3h AS origin_backlog_3h
    FROM timeline
    WINDOW
        origin_1h AS (
            PARTITION BY for_date, origin ORDER BY instant
            RANGE BETWEEN INTERVAL '1' HOUR PRECEDING AND CURRENT ROW
        ),
        origin_3h AS (
            PARTITION BY for_date, origin ORDER BY instant
            RANGE BETWEEN INTERVAL '3' HOUR PRECEDING AND CURRENT ROW
        ),
        network_1h AS (
            PARTITION BY for_date ORDER BY instant
            RANGE BETWEEN INTERVAL '1' HOUR PRECEDING AND CURRENT ROW
        ),
        network_3h AS (
            PARTITION BY for_date ORDER BY instant
            RANGE BETWEEN INTERVAL '3' HOUR PRECEDING AND CURRENT ROW
        ),
        origin_carrier_4h AS (
            PARTITION BY for_date, origin, carrier ORDER BY instant
            RANGE BETWEEN INTERVAL '4' HOUR PRECEDING AND CURRENT ROW
        ),
        carrier_4h AS (
            PARTITION BY for_date, carrier ORDER BY instant
            RANGE BETWEEN INTERVAL '4' HOUR PRECEDING AND CURRENT ROW
        ),
        dest_8h AS (
            PARTITION BY for_date, dest ORDER BY instant
            RANGE BETWEEN INTERVAL '8' HOUR PRECEDING AND CURRENT ROW
        ),
        network_recent AS (
            PARTITION BY for_date ORDER BY instant
            RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        ),
        origin_recent AS (
            PARTITION BY for_date, origin ORDER BY instant
            RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        ),
        carrier_recent AS (
            PARTITION BY for_date, carrier ORDER BY instant
            RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        ),
        origin_carrier_recent AS (
            PARTITION BY for_date, origin, carrier ORDER BY instant
            RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        ),
        dest_recent AS (
            PARTITION BY for_date, dest ORDER BY instant
            RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        )
)
SELECT
    f.flight_date AS partition_date,
    f.carrier,
    f.flight,
    f.origin,
    f.dest,
    f.scheduled_departure,
    q.prediction_time,
    CASE WHEN f.arr_delay > 15 THEN 1 WHEN f.arr_delay <= 15 THEN 0 END AS delayed,
    f.scheduled_hour,
    f.scheduled_hour * 60 + EXTRACT(MINUTE FROM f.scheduled_departure) AS scheduled_minute,
    q.day_of_week,
    f.distance,
    (EXTRACT(HOUR FROM f.scheduled_arrival - f.scheduled_departure) * 60
        + EXTRACT(MINUTE FROM f.scheduled_arrival - f.scheduled_departure)) AS block_minutes,
    COUNT(*) OVER (PARTITION BY f.flight_date, f.origin, f.scheduled_hour) AS flights_this_hour,
    w.temp, w.dewp, w.humid, w.wind_dir, w.wind_speed, w.wind_gust, w.precip, w.pressure, w.visib,
    k.origin_late_1h,
    k.origin_late_3h,
    k.origin_dep_delay_3h,
    k.origin_arr_delay_3h,
    k.network_late_1h,
    k.network_late_3h,
    k.network_dep_delay_3h,
    k.network_arr_delay_3h,
    k.origin_carrier_late_4h,
    k.origin_carrier_dep_delay_4h,
    k.carrier_late_4h,
    k.dest_late_8h,
    k.dest_dep_delay_8h,
    k.dest_arr_delay_8h,
    k.network_late_recent,
    k.origin_late_recent,
    k.carrier_late_recent,
    k.origin_carrier_late_recent,
    k.dest_late_recent,
    k.origin_backlog_3h
FROM flights AS f
INNER JOIN questions AS q
    ON q.flight_date = f.flight_date AND q.carrier = f.carrier AND q.flight = f.flight AND q.origin = f.origin
    AND q.scheduled_departure = f.scheduled_departure
INNER JOIN known AS k
    ON k.for_date = f.flight_date AND k.carrier = f.carrier AND k.flight = f.flight AND k.origin = f.origin
    AND k.scheduled_departure = f.scheduled_departure
LEFT JOIN weather AS w
    ON w.origin = f.origin AND w.time_hour = DATE_TRUNC('hour', q.prediction_time)
